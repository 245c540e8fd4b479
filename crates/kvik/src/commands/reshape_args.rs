//! A trace from a file, and how it is changed before it is used: options of all that read one.

use std::path::PathBuf;

use anyhow::bail;
use kvik_eval::trace::Trace;

use super::numbers::{above_zero, at_least_one, share};

/// Which trace, and which part of it
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// The trace: Mooncake's JSON lines, Azure's CSV or BurstGPT's CSV, packed with zstd or not
    #[arg(value_name = "TRACE")]
    pub path: PathBuf,
    /// Seconds of the trace to leave out at its beginning
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    start: f64,
    /// Seconds of the trace to take [default: all]
    #[arg(long, value_name = "SECONDS", value_parser = above_zero)]
    duration: Option<f64>,
    /// Requests to take, at most
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// The share of conversations to take, drawn at random: fewer requests with bursts and turns as they are
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    thin: f64,
    /// Multiply prompts, answers and shared blocks by this
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = above_zero)]
    lengths: f64,
    /// Leave out requests that equal the one before in every column
    #[arg(long)]
    dedupe: bool,
    /// Spread arrivals that are rounded to a second or more evenly at random within it
    #[arg(long)]
    spread: bool,
}

impl SourceArgs {
    /// The trace, and what was done to it.
    pub fn trace(&self) -> anyhow::Result<(Trace, Vec<String>)> {
        let mut trace = Trace::read(&self.path)?;
        let mut notes = Vec::new();
        // Before arrivals are spread, or no two are equal.
        if self.dedupe {
            let before = trace.requests.len();
            trace = trace.without_duplicates();
            notes.push(format!("{} duplicates are left out", before - trace.requests.len()));
        }
        if self.spread && trace.resolution_s > 0.0 {
            notes.push(format!(
                "arrivals, rounded to {:.3} s, are spread evenly at random within it",
                trace.resolution_s
            ));
            trace = trace.spread(1);
        }
        if self.start != 0.0 || self.duration.is_some() {
            trace = trace.window(self.start, self.duration.unwrap_or(f64::INFINITY));
        }
        if self.thin < 1.0 {
            trace = trace.thinned(self.thin, 1);
        }
        trace = trace.first(self.limit.unwrap_or(usize::MAX));
        if self.lengths != 1.0 {
            trace = trace.resized(self.lengths);
            notes.push(format!("lengths are multiplied by {}", self.lengths));
        }
        if trace.requests.is_empty() {
            bail!("no request of {} is left: --start, --duration and --thin leave none", self.path.display());
        }
        Ok((trace, notes))
    }
}
