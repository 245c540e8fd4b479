//! `kvik replay`: real traffic, or its twin, against a server or an engine.

use std::{fmt::Write, ops::ControlFlow, time::Duration};

use kvik_eval::{
    client::{Endpoint, Target},
    load::{LoadReport, Replay, replay},
    trace::{Trace, facts::Facts, prompts::PromptWriter},
};
use tokio::runtime::Runtime;

use super::Interrupted;
use super::interrupt::Interrupt;
use super::load_args::{AskArgs, Asked, LOAD_FIGURES, LevelArgs, ReportArgs, failed, runtime, show};
use super::numbers::{above_zero, whole};
use super::progress::progress_bar;
use super::reshape_args::SourceArgs;
use super::service_args::ServiceArgs;

/// Replay a trace of serving traffic against a server or an engine, on time, and report what its users would have seen
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_arg("model", |model| model.help("The model to name [default: the first that the server lists]; with --engine, the model to load, as of `kvik serve`")))]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// The server, any that speaks OpenAI's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: Endpoint,
    /// Ask an engine in this process instead of a server: the one that `kvik serve` would run, without HTTP between
    #[arg(long, conflicts_with_all = ["url", "chat", "text", "fields"])]
    engine: bool,
    /// Let time pass so many times as fast
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = above_zero, conflicts_with = "rate")]
    scale: f64,
    /// Requests per second on average, instead of --scale
    #[arg(long, value_name = "RATE", value_parser = above_zero)]
    rate: Option<f64>,
    /// Tokens that a prompt and its answer may have together; longer ones are cut
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    context: Option<u32>,
    /// Also send what the trace's own service did not answer, for an answer of one token
    #[arg(long)]
    failed: bool,
    /// Send turns when they are due, even if the answer before is not complete
    #[arg(long)]
    no_wait: bool,
    /// Seed of the prompts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u64>)]
    seed: u64,
    /// Seconds between looks at the server's own counters
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = above_zero)]
    watch: f64,
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    levels: LevelArgs,
    #[command(flatten)]
    report: ReportArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik replay azure_llm_2023_conv.csv.zst --duration 3600 --scale 10 --thin 0.05 --context 8192
  kvik replay mooncake_conversation.jsonl.zst --lengths 0.1 --rate 2 --slo-ttft 2000 --slo-tpot 100 --html report.html
  kvik trace generate --duration 600 --rate 1 --out burst.csv && kvik replay burst.csv --context 8192
  kvik replay burst.csv --context 8192 --engine --model smollm2 --kv 'kivi(bits=4)' --kv-memory 512MiB

Requests are sent when they are due, whatever the server does; latencies count from then. A turn of a conversation waits \
for the answer before it, and then for as long as its user thought about it, where the trace says that. Prompts are \
invented, as long as the trace says and alike where it says so. The exit code is 1 when a request has no whole answer.

With --engine the model runs in this process, with the options of `kvik serve` and their environment variables; prompts \
are the same token ids, and the report has the same numbers.";

pub fn run(args: &Args) -> anyhow::Result<()> {
    args.report.check()?;
    let (trace, notes) = args.trace()?;
    let runtime = runtime()?;
    if args.engine {
        let serving = args.service.start(args.ask.model())?;
        args.replay(&runtime, args.ask.engine(serving)?, &trace, notes)
    } else {
        let asked = runtime.block_on(args.ask.ask(&args.url))?;
        args.replay(&runtime, asked, &trace, notes)
    }
}

impl Args {
    /// The trace as it is sent, and what was done to it.
    fn trace(&self) -> anyhow::Result<(Trace, Vec<String>)> {
        let (mut trace, mut notes) = self.source.trace()?;
        if !self.failed {
            let before = trace.requests.len();
            trace = trace.answered();
            if trace.requests.len() < before {
                notes.push(format!(
                    "{} requests that were never answered are left out",
                    before - trace.requests.len()
                ));
            }
        }
        if trace.requests.is_empty() {
            anyhow::bail!(
                "no request of {} was ever answered; --failed sends them too",
                self.source.path.display()
            );
        }
        if let Some(context) = self.context {
            let clipped = trace.clip(context);
            if clipped.prompts + clipped.answers > 0 {
                notes.push(format!(
                    "{} prompts and {} answers are cut to a context of {context} tokens",
                    clipped.prompts, clipped.answers
                ));
            }
        }
        if self.rate.is_some() && trace.span_s() <= 0.0 {
            anyhow::bail!(
                "all requests arrive at once, so that there is no rate to change: take more of them, or --spread them"
            );
        }
        let factor = self.rate.map_or(self.scale, |rate| rate / trace.rate().max(f64::MIN_POSITIVE));
        let first = trace.requests[0].arrival_s;
        Ok((trace.window(first, f64::INFINITY).faster(factor), notes))
    }

    /// Sends `trace` to whoever is asked, and reports.
    fn replay<T: Target>(
        &self,
        runtime: &Runtime,
        asked: Asked<T>,
        trace: &Trace,
        mut notes: Vec<String>,
    ) -> anyhow::Result<()> {
        let Asked { target, material, notes: of_target } = asked;
        notes.extend(of_target);
        let load = Replay {
            trace,
            prompts: PromptWriter::new(material, self.seed),
            turns_wait: !self.no_wait,
            watch: Duration::from_secs_f64(self.watch),
        };
        let interrupt = Interrupt::install()?;
        let bar = progress_bar(LOAD_FIGURES);
        interrupt.begin();
        let (exchanges, samples) = runtime.block_on(replay(&target, &load, &mut |at| {
            show(&bar, at);
            if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }));
        let stopped = interrupt.pressed();
        interrupt.end();
        bar.finish_and_clear();
        let (name, levels) = (target.name(), self.levels.levels());
        let mut report =
            LoadReport::new(&name, target.model(), &self.said(trace), &exchanges, samples, levels);
        report.finished = !stopped;
        report.notes = notes;
        self.report.write(&report, || report.html(), &report.text())?;
        match failed(&report) {
            _ if stopped => Err(Interrupted.into()),
            Some(sentence) => anyhow::bail!(sentence),
            None => Ok(()),
        }
    }

    /// The load in words.
    fn said(&self, trace: &Trace) -> String {
        let facts = Facts::of(trace);
        let mut said = format!(
            "{}, {} requests in {:.0} s, {:.2} per second, open loop",
            facts.origin, facts.requests, facts.span_s, facts.requests_per_second
        );
        if self.rate.is_none() && self.scale != 1.0 {
            let _ = write!(said, ", {} times as fast", self.scale); // to a String: cannot fail
        }
        said
    }
}
