//! `kvik eval`: what a model can still do with a cache that keeps less.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
};

use anyhow::anyhow;
use kvik_eval::{
    baselines::{Baseline, with_baselines},
    data::DataFolder,
    item::Mode,
    journal::Journal,
    prompt::Prompter,
    report::Report,
    run::{self, QuestionPlace, Settings},
    subject::{EngineSubject, SESSIONS},
    tasks::{Choice, Kit, Plan, REGISTRY},
};
use kvik_kv::Pipeline;
use kvik_model::{ChatTemplate, Checkpoint, Tokenizer};

use super::Interrupted;
use super::engine_args::LoadArgs;
use super::interrupt::Interrupt;
use super::numbers::{at_least_one, whole};
use super::output::{check_writable, print_unless, write, write_json};
use super::progress::progress_bar;

/// Measure what a model can still do with a smaller KV cache, next to the full one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Tasks with commas between them, `task:part` for a part of one; `--list` shows them
    #[arg(long, short = 'T', value_name = "LIST", value_delimiter = ',', required_unless_present = "list")]
    task: Vec<String>,
    /// Show the tasks and their parts
    #[arg(long)]
    list: bool,
    /// Methods that rewrite the cache, such as 'snapkv(budget=512)+kivi(bits=2)'; once for each pipeline to compare
    #[arg(long, value_name = "PIPELINE", help_heading = "Cache", value_parser = Pipeline::parse)]
    kv: Vec<Pipeline>,
    /// What stands beside the pipelines at the same budget, besides the full cache
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_value = "streaming,random")]
    #[arg(help_heading = "Cache")]
    baselines: Vec<BaselineName>,
    /// Rows that a head keeps under the baselines [default: as many as under each pipeline]
    #[arg(long, value_name = "ROWS", help_heading = "Cache", value_parser = at_least_one)]
    budget: Option<usize>,
    /// Lengths of the prompts in tokens
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1024", value_parser = at_least_one)]
    lengths: Vec<usize>,
    /// Depths of needles in per cent, where a task has a grid of them
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,25,50,75,100")]
    depths: Vec<f64>,
    /// Items per length, and per part and mode where a task has them
    #[arg(long, value_name = "N", default_value_t = Plan::default().items, value_parser = at_least_one)]
    items: usize,
    /// Seed of everything that is drawn
    #[arg(long, value_name = "N", default_value_t = Plan::default().seed, value_parser = whole::<u64>)]
    seed: u64,
    /// Questions about each context of `scbench`
    #[arg(long, value_name = "N", default_value_t = Plan::default().turns, value_parser = at_least_one)]
    turns: usize,
    /// Tokens that `ppl`, `kl` and `copy` follow behind the prompt
    #[arg(long, value_name = "N", default_value_t = Plan::default().forced_tokens, value_parser = at_least_one)]
    forced: usize,
    /// How the questions of `scbench` hang together
    #[arg(long, value_enum, default_value_t = ModeName::Both)]
    mode: ModeName,
    /// Where the first question stands when the method acts
    #[arg(long, value_enum, default_value_t = PlaceName::WithContext)]
    question: PlaceName,
    /// Write all numbers as one JSON object to FILE; `-`, or no FILE, is standard output, then without the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write a page with plots to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Keep finished items in FILE, and take from it those that are there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik eval --list
  kvik eval --task ppl,kl --lengths 1024 --items 5
  kvik eval --task passkey,niah --kv 'snapkv(budget=512)' --lengths 1024,2048 --items 20 --html report.html
  kvik eval --task scbench:kv --kv 'snapkv(budget=256)' --items 50 --resume run.jsonl --json numbers.json";

/// [`Baseline`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum BaselineName {
    /// The first tokens and the most recent ones
    Streaming,
    /// Tokens at random
    Random,
    /// Only what --kv says
    None,
}

/// [`Mode`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ModeName {
    /// Either way, one after the other
    Both,
    /// One conversation on golden answers
    MultiTurn,
    /// Requests that each start from the context alone
    MultiRequest,
}

/// [`QuestionPlace`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PlaceName {
    /// At the end of the prompt, where methods that look at its last tokens see it
    WithContext,
    /// Behind the prompt: the method does not know what will be asked
    After,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.list {
        return list();
    }
    let choices = Choice::parse_all(&args.task)?;
    let plan = args.plan();
    plan.validate()?;
    let (pipelines, notes) = args.pipelines();
    check_writable([args.json.as_deref(), args.html.as_deref()])?;
    let mut journal = match &args.resume {
        Some(path) => Journal::open(path)?,
        None => Journal::in_memory(),
    };

    let mut loaded = args.load.with(SESSIONS, args.kv.first().cloned().unwrap_or_default())?;
    let settings = Settings {
        model: loaded.name(),
        question: match args.question {
            PlaceName::WithContext => QuestionPlace::WithContext,
            PlaceName::After => QuestionPlace::After,
        },
    };
    // The engine is under test and changes; what writes prompts stands beside it.
    let checkpoint = Checkpoint::open(&loaded.path)?;
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let template = ChatTemplate::from_checkpoint(&checkpoint).map_err(|error| anyhow!("{error}"))?;
    let kit = Kit { prompter: Prompter::new(&tokenizer, template.as_ref())?, data: DataFolder::from_env() };
    let prepared = run::prepare(&kit, &choices, &plan, loaded.engine.context_tokens())?;

    let interrupt = Interrupt::install()?;
    let progress = progress_bar("{pos} of {len}  {eta}  {msg}");
    let mut subject = EngineSubject::new(&mut loaded.engine, &pipelines)?;
    interrupt.begin();
    let run = run::run(&mut subject, &kit, prepared, &settings, &mut journal, &mut |at| {
        progress.set_length(at.total as u64);
        progress.set_position(at.done as u64);
        progress.set_message(format!("{}  {}", at.task, at.kv));
        if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    interrupt.end();
    progress.finish_and_clear();
    let run = run?;

    let report = Report::new(&run, &settings, plan.seed, notes);
    args.show(&report)?;
    if report.finished { Ok(()) } else { Err(Interrupted.into()) }
}

impl Args {
    fn plan(&self) -> Plan {
        Plan {
            lengths: self.lengths.clone(),
            depths: self.depths.iter().map(|depth| depth / 100.0).collect(),
            items: self.items,
            seed: self.seed,
            turns: self.turns,
            forced_tokens: self.forced,
            modes: match self.mode {
                ModeName::Both => Plan::default().modes,
                ModeName::MultiTurn => vec![Mode::MultiTurn],
                ModeName::MultiRequest => vec![Mode::MultiRequest],
            },
        }
    }

    /// The pipelines with their baselines, and what is to be said about them.
    fn pipelines(&self) -> (Vec<Pipeline>, Vec<String>) {
        let baselines = self.baselines.iter().filter_map(|name| match name {
            BaselineName::Streaming => Some(Baseline::Streaming),
            BaselineName::Random => Some(Baseline::Random),
            BaselineName::None => None,
        });
        with_baselines(&self.kv, &baselines.collect::<Vec<_>>(), self.budget)
    }

    fn show(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(path) = &self.html {
            write(path, report.html().as_bytes())?;
        }
        if let Some(path) = &self.json {
            write_json(path, report)?;
        }
        print_unless([self.json.as_deref(), self.html.as_deref()], &report.text())
    }
}

fn list() -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for task in REGISTRY {
        writeln!(out, "{:<9} {}", task.name(), task.about())?;
        if !task.parts().is_empty() {
            writeln!(out, "          parts: {}", task.parts().join(", "))?;
        }
    }
    Ok(())
}
