//! `kvik bench`: how fast, and how much of this machine that is.

mod kernels;
mod serve;
mod speed;

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::bail;
use indicatif::ProgressBar;
use kvik::bench::table::Table;
use kvik_kernels::{Isa, ThreadPool};

/// Measure the speed of a model, of single kernels or of a server, against this machine's limits and other engines
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Speed(speed::Args),
    Kernels(kernels::Args),
    Serve(Box<serve::Args>),
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Err(unknown) = Isa::requested() {
        bail!("KVIK_ISA: {unknown}");
    }
    match &args.what {
        What::Speed(args) => speed::run(args),
        What::Kernels(args) => kernels::run(args),
        What::Serve(args) => serve::run(args),
    }
}

/// Options of those that compute here.
#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Threads to compute on [default: one for each core]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Rounds, in each of which everything is measured once
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// One JSON object instead of a table
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The table in Markdown
    #[arg(long)]
    markdown: bool,
}

impl RunArgs {
    fn pool(&self) -> ThreadPool {
        self.threads.map_or_else(ThreadPool::with_all_cores, |threads| ThreadPool::new(threads.into()))
    }

    fn rounds(&self) -> usize {
        self.runs.into()
    }

    fn print_table(&self, above: &str, table: &Table, below: &[String]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let table = if self.markdown { table.markdown() } else { table.text() };
        writeln!(out, "{above}\n\n{table}")?;
        below.iter().try_for_each(|line| writeln!(out, "- {line}"))
    }
}

/// Says on a terminal what is being measured.
fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    // Slow, because the drawing takes time from what is measured.
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
