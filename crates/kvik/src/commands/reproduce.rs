//! `kvik reproduce`: a paper's claim, measured here.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use kvik_eval::{
    EvalError,
    data::DataFolder,
    prompt::Prompter,
    reproduce::{EXPERIMENTS, Lab, Machine, Record, Scale, find, table},
    subject::SESSIONS,
    tasks::Kit,
};
use kvik_kernels::Isa;
use kvik_kv::Pipeline;
use kvik_model::{ChatTemplate, Checkpoint, Tokenizer};

use super::Interrupted;
use super::engine_args::LoadArgs;
use super::interrupt::Interrupt;

/// Run a paper's experiment at this machine's scale and say whether its claim holds here
///
/// The exit code is 0 only if every threshold holds.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The experiment; `--list` shows them
    #[arg(required_unless_present_any = ["list", "table"])]
    name: Option<String>,
    /// Show the experiments
    #[arg(long)]
    list: bool,
    /// Print the book's table of all records in the folder
    #[arg(long)]
    table: bool,
    /// A minute or two that show that the experiment runs; its record is not kept
    #[arg(long)]
    quick: bool,
    /// The record as JSON instead of text
    #[arg(long)]
    json: bool,
    /// Where records are kept
    #[arg(long, value_name = "FOLDER", default_value = "reproductions")]
    records: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik reproduce --list
  kvik reproduce snapkv --quick
  kvik reproduce kivi
  kvik reproduce --table > docs/reproductions.md";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if args.list {
        for experiment in EXPERIMENTS {
            writeln!(
                out,
                "{:<10} {}\n{:<10} {}",
                experiment.name(),
                experiment.claim(),
                "",
                experiment.paper()
            )?;
        }
        return Ok(());
    }
    if args.table {
        return Ok(write!(out, "{}", table(&records(&args.records)?))?);
    }
    let record = measure(args)?;
    if args.json {
        serde_json::to_writer_pretty(&mut out, &record).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", record.text())?;
    }
    if !record.quick {
        keep(&args.records, &record)?;
    }
    if record.holds() { Ok(()) } else { Err(ClaimFails.into()) }
}

/// The measurements are told already; this is for the exit code.
#[derive(Debug, thiserror::Error)]
#[error("the claim does not hold here")]
struct ClaimFails;

fn measure(args: &Args) -> anyhow::Result<Record> {
    let experiment = find(args.name.as_deref().unwrap_or_default())?;
    let mut loaded = args.load.with(SESSIONS, Pipeline::full())?;
    let checkpoint = Checkpoint::open(&loaded.path)?;
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let template = ChatTemplate::from_checkpoint(&checkpoint).map_err(|error| anyhow!("{error}"))?;
    let kit = Kit { prompter: Prompter::new(&tokenizer, template.as_ref())?, data: DataFolder::from_env() };
    let (model, threads) = (loaded.name(), loaded.engine.threads());
    let interrupt = Interrupt::install()?;
    let progress =
        if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let scale = if args.quick { Scale::Quick } else { Scale::Full };
    let start = Instant::now();
    let mut on_progress = |what: &str| {
        progress.set_message(what.to_owned());
        progress.tick();
        if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    interrupt.begin();
    let mut lab = Lab::new(&mut loaded.engine, &kit, model.clone(), scale, &mut on_progress);
    let results = experiment.run(&mut lab);
    interrupt.end();
    progress.finish_and_clear();
    let results = match results {
        Err(EvalError::Stopped) => return Err(Interrupted.into()),
        results => results?,
    };
    Ok(Record {
        name: experiment.name().to_owned(),
        paper: experiment.paper().to_owned(),
        claim: experiment.claim().to_owned(),
        setting: experiment.setting().to_owned(),
        quick: args.quick,
        model,
        commit: option_env!("KVIK_COMMIT").map(str::to_owned),
        machine: Machine { processor: processor(), threads, isa: Isa::active().to_string() },
        seconds: start.elapsed().as_secs_f64(),
        measurements: results.measurements,
        findings: results.findings,
    })
}

/// Writes the record whole or not at all.
fn keep(folder: &Path, record: &Record) -> anyhow::Result<()> {
    let path = folder.join(format!("{}.json", record.name));
    let part = folder.join(format!("{}.json.part", record.name));
    let text = serde_json::to_vec_pretty(record)?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&part, text))
        .and_then(|()| fs::rename(&part, &path))
        .with_context(|| {
            format!("cannot keep the record as {}; choose another folder with --records", path.display())
        })
}

/// All records of a folder, by name.
fn records(folder: &Path) -> anyhow::Result<Vec<Record>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}; choose the folder with --records", folder.display()))?;
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let record: Record = serde_json::from_str(&text)
                .with_context(|| format!("{} is no record of `kvik reproduce`", path.display()))?;
            records.push(record);
        }
    }
    if records.is_empty() {
        bail!("there is no record in {}: run an experiment first", folder.display());
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// The processor's name, as the system tells it.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    match (field("cpu family"), field("model\t")) {
        (Some(family), Some(model)) => format!("{name} (family {family}, model {model})"),
        _ => name,
    }
}
