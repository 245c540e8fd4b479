//! `kvik bench serve`: servers under load.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    str::FromStr,
};

use kvik::bench::serve::{Contestant, Level, Range, Workload, race};
use kvik_eval::client::Endpoint;

use crate::commands::{
    Interrupted,
    interrupt::Interrupt,
    load_args::{AskArgs, LOAD_FIGURES, LevelArgs, runtime, show},
    numbers::{above_zero, at_least_one, whole},
    progress::progress_bar,
};

/// Put a server under load, beside others, and measure what its users get
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The server, any that speaks OpenAI's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: Endpoint,
    /// Another server under the same load, in turns with the first
    #[arg(long = "peer", value_name = "NAME=URL")]
    peers: Vec<Peer>,
    /// Numbers of users who each wait for their answer before they ask again
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = at_least_one)]
    users: Vec<usize>,
    /// Requests per second that are sent whether or not those before are answered
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = above_zero)]
    rate: Vec<f64>,
    /// Burstiness of these: the shape of the gaps' Gamma distribution; 1 is a Poisson process, 0.25 comes in strong bursts
    #[arg(long, value_name = "ALPHA", default_value_t = 1.0, value_parser = above_zero)]
    alpha: f64,
    /// Requests at each level and round [default: 4 for each user, at least 16; those of a minute]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    requests: Option<usize>,
    /// Tokens of prompts
    #[arg(long, value_name = "RANGE", default_value = "200-1500")]
    prompt: Range,
    /// Tokens of answers
    #[arg(long, value_name = "RANGE", default_value = "64-256")]
    answer: Range,
    /// Tokens that all prompts begin with, besides their own
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    shared: usize,
    /// Seed of lengths, texts and gaps
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u64>)]
    seed: u64,
    /// Rounds, in each of which every server has its turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    runs: usize,
    /// One JSON object instead of a table
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// The table in Markdown
    #[arg(long)]
    markdown: bool,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    levels: LevelArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik bench serve --users 1,8,32
  kvik bench serve --users 8 --shared 1500 --prompt 50-200
  kvik bench serve --rate 2 --alpha 0.25 --requests 200 --slo-ttft 1000 --json
  kvik bench serve --users 8,32 --runs 3 --peer llama.cpp=http://127.0.0.1:8081

Prompts are token ids where a server lends its tokenizer by /tokenize, else text. Answers are as long as asked for where \
the server knows ignore_eos or min_tokens. Figures are medians over the rounds; ITL is the time between two pieces of an \
answer, and `first is` says how many times as many tokens per second the first server handles.";

/// Another server and its name.
#[derive(Clone, Debug)]
struct Peer {
    name: String,
    url: Endpoint,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = text.split_once('=').ok_or("a peer is given as NAME=URL")?;
        if name.trim().is_empty() {
            return Err("a peer is given as NAME=URL".to_owned());
        }
        Ok(Self {
            name: name.trim().to_owned(),
            url: url.trim().parse().map_err(|error| format!("{error}"))?,
        })
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut contestants = Vec::new();
    let mut notes = Vec::new();
    let first = ("first".to_owned(), &args.url);
    for (name, url) in
        std::iter::once(first).chain(args.peers.iter().map(|peer| (peer.name.clone(), &peer.url)))
    {
        let asked = runtime.block_on(args.ask.ask(url))?;
        notes.extend(asked.notes.iter().map(|note| format!("{name}: {note}")));
        contestants.push(Contestant { name, target: asked.target, material: asked.material });
    }
    let workload = Workload {
        prompt_tokens: args.prompt,
        answer_tokens: args.answer,
        shared_tokens: args.shared,
        seed: args.seed,
    };
    let interrupt = Interrupt::install()?;
    let bar = progress_bar(LOAD_FIGURES);
    interrupt.begin();
    let (plan, limits) = (args.plan(), args.levels.levels());
    let mut progress = |what: &str, at| {
        show(&bar, at);
        bar.set_message(what.to_owned());
        if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let report = runtime.block_on(race(&contestants, &workload, &plan, args.runs, limits, &mut progress));
    interrupt.end();
    bar.finish_and_clear();
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let table = report.table();
        let table = if args.markdown { table.markdown() } else { table.text() };
        let shared = if args.shared > 0 { format!("{} shared and ", args.shared) } else { String::new() };
        writeln!(
            out,
            "{}: prompts of {shared}{} tokens, answers of {}. Medians of {} rounds.\n\n{table}",
            contestants[0].target.model, args.prompt, args.answer, args.runs
        )?;
        notes.extend(report.remarks());
        notes.iter().try_for_each(|note| writeln!(out, "- {note}"))?;
    }
    if report.finished { Ok(()) } else { Err(Interrupted.into()) }
}

impl Args {
    /// The levels: users, then rates; 8 users when nothing is said.
    fn plan(&self) -> Vec<Level> {
        const LEAST_REQUESTS: usize = 16;
        let users = if self.users.is_empty() && self.rate.is_empty() { &[8][..] } else { &self.users };
        let closed = |&users: &usize| Level::Closed {
            users,
            requests: self.requests.unwrap_or((4 * users).max(LEAST_REQUESTS)),
        };
        let open = |&rate: &f64| Level::Open {
            rate,
            alpha: self.alpha,
            requests: self.requests.unwrap_or(((60.0 * rate).ceil() as usize).max(LEAST_REQUESTS)),
        };
        users.iter().map(closed).chain(self.rate.iter().map(open)).collect()
    }
}
