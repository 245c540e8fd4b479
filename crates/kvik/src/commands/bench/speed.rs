//! `kvik bench speed`: prefill and decode of a model.

use std::{
    io::{self, Write},
    str::FromStr,
};

use kvik::bench::{
    figure::Figure,
    limits::Gauge,
    peer::Peer,
    speed::{Race, SpeedReport},
    subject::Subject,
    work::ModelCost,
};
use kvik_kernels::Isa;
use kvik_model::{Checkpoint, Model};

use super::{RunArgs, progress};
use crate::commands::{engine_args::KvArgs, model_args::ModelArgs};

/// Measure how fast a model reads prompts and writes tokens, alone and in batches
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Lengths of prompts, in tokens; `none` for none [default: 128,512,2048,8000 as far as the context goes]
    #[arg(long, value_name = "LIST")]
    prefill: Option<Counts>,
    /// Tokens of the sequence before decoding is timed [default: 0,2048,8000,16000,30000 as far as the context goes]
    #[arg(long, value_name = "LIST")]
    depths: Option<Counts>,
    /// Numbers of sequences that are decoded together
    #[arg(long, value_name = "LIST", default_value = "2,4,8,16,32")]
    batch: Counts,
    /// Tokens of each of them before decoding is timed
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    batch_depth: usize,
    /// Tokens that are decoded for each sequence
    #[arg(long = "gen", value_name = "TOKENS", default_value_t = 64)]
    gen_tokens: usize,
    /// Another engine: a command that measures one figure and prints JSON as `llama-bench -o json` does
    #[arg(long = "peer", value_name = "NAME=CMD")]
    peers: Vec<Peer>,
    /// The same for batches, with output as that of `llama-batched-bench --output-format jsonl`
    #[arg(long = "peer-batch", value_name = "NAME=CMD")]
    batch_peers: Vec<Peer>,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik bench speed --threads 2
  kvik bench speed --model gemma3-270m --prefill 512 --depths 0,16000 --batch none
  kvik bench speed --batch none --peer 'llama.cpp=llama-bench -m {model} -t {threads} -p {prompt} -n {gen} -d {depth} -r 1 -o json'
  kvik bench speed --prefill none --depths none --batch 16 --peer-batch 'llama.cpp=llama-batched-bench -m {model} \\
      -t {threads} -c {context} -npp {depth} -ntg {gen} -npl {sequences} --output-format jsonl'

In a peer's command {model}, {threads}, {prompt}, {gen}, {depth}, {sequences} and {context} stand for a figure's values. \
It runs once for each figure and round, right after Kvik's turn.";

/// Numbers with commas between them, or `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts(Vec<usize>);

impl FromStr for Counts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let count = |word: &str| word.trim().parse().map_err(|_| format!("'{word}' is no number"));
        text.split(',').map(count).collect::<Result<_, _>>().map(Self)
    }
}

/// Figures, and what became of those that were asked for and do not fit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Plan {
    /// Adds what was asked for, shortened to `context` tokens.
    fn require(&mut self, figures: impl IntoIterator<Item = Figure>, context: usize) {
        for figure in figures {
            let fitting = figure.fit(context);
            match fitting {
                Some(fitting) if fitting == figure => {}
                Some(fitting) => self.notes.push(format!(
                    "{figure} goes beyond the model's context of {context} tokens; instead: {fitting}"
                )),
                None => self.notes.push(format!("{figure} has no tokens to measure")),
            }
            self.figures.extend(fitting.filter(|fitting| !self.figures.contains(fitting)));
        }
    }

    /// Adds those that fit.
    fn offer(&mut self, figures: impl IntoIterator<Item = Figure>, context: usize) {
        self.figures.extend(figures.into_iter().filter(|figure| figure.fit(context) == Some(*figure)));
    }
}

impl Args {
    fn plan(&self, context: usize) -> Plan {
        let prefill = |&prompt: &usize| Figure::Prefill { prompt };
        let decode = |&depth: &usize| Figure::Decode { sequences: 1, depth, gen_tokens: self.gen_tokens };
        let mut plan = Plan::default();
        match &self.prefill {
            Some(Counts(prompts)) => plan.require(prompts.iter().map(prefill), context),
            None => plan.offer([128, 512, 2048, 8000].iter().map(prefill), context),
        }
        match &self.depths {
            Some(Counts(depths)) => plan.require(depths.iter().map(decode), context),
            None => plan.offer([0, 2048, 8000, 16000, 30000].iter().map(decode), context),
        }
        let Self { batch_depth, gen_tokens, .. } = *self;
        let batch = |&sequences: &usize| Figure::Decode { sequences, depth: batch_depth, gen_tokens };
        plan.require(self.batch.0.iter().map(batch), context);
        plan
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let (path, pool, bar) = (args.model.path()?, args.run.pool(), progress());
    let mut model = Model::load(&Checkpoint::open(&path)?, &pool, None)?;
    model.prepare_for(&pool, &args.kv.pipeline)?;
    let config = model.config();
    let context = config.trained_context.min(config.position_limit.unwrap_or(usize::MAX));
    let Plan { figures, notes } = args.plan(context);
    if figures.is_empty() {
        anyhow::bail!("there is nothing to measure: name at least one of --prefill, --depths and --batch");
    }
    let race = Race {
        subject: Subject::new(&model, &pool, &args.kv.pipeline, &figures)?,
        cost: ModelCost::of(&model, Isa::active()),
        gauge: Gauge::new(Isa::active(), pool.threads())?,
        pool: &pool,
        model: &path,
        figures,
        peers: args.peers.clone(),
        batch_peers: args.batch_peers.clone(),
    };
    let rounds = args.run.rounds();
    let (limits, figures) = race.run(rounds, &mut |what| bar.set_message(what.to_owned()))?;
    bar.finish_and_clear();
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let report = SpeedReport { model: name, rounds, limits, figures, notes };
    if args.run.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let above = format!("{} Medians of {rounds} rounds.", report.limits.sentence());
    Ok(args.run.print_table(&above, &report.table(), &report.remarks())?)
}
