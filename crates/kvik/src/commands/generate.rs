//! `kvik generate`: one prompt, one text.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use kvik_engine::{GenerateRequest, Generation, StopReason};
use kvik_memory::counters;
use kvik_model::ChatTemplate;
use kvik_model::tokenizer::EncodeOptions;
use serde::Serialize;

use super::Interrupted;
use super::constraint_args::ConstraintArgs;
use super::conversation::{Conversation, encode_chat};
use super::engine_args::{EngineArgs, Loaded};
use super::input::read_text;
use super::interrupt::Interrupt;
use super::numbers::whole;
use super::sampling_args::{COMPLETION_TOKENS, SamplingArgs};
use super::stream::{Stream, statistics};

/// Write a text that answers or continues a prompt
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The prompt; `-`, or no prompt at all, reads standard input
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, short, value_name = "PATH", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Ask as the user of a chat [default where the model has a chat template]
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Continue the prompt as it stands; special tokens may be written out in it
    #[arg(long)]
    raw: bool,
    /// What the chat's system message says
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    system: Option<String>,
    /// One JSON object at the end instead of text as it comes
    #[arg(long)]
    json: bool,
    /// In the JSON object: the log-probability of each token, and the N most likely at its place
    #[arg(long, value_name = "N", requires = "json")]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    logprobs: Option<usize>,
    /// Say on standard error what it cost, even if that is not a terminal
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    constraint: ConstraintArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik generate \"Why is the sky blue?\"
  kvik generate --file letter.txt --system \"Answer in one sentence.\" --temperature 0
  echo \"Once upon a time\" | kvik generate --raw --model gemma3-270m --max-tokens 100
  kvik generate \"Name a colour.\" --json --logprobs 3 --seed 1
  kvik generate \"Describe Ada Lovelace.\" --json-schema person.json
  kvik generate --file report.txt --kv 'snapkv(budget=512)+kivi(bits=4)'";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let prompt = read_text(args.prompt.as_deref(), args.file.as_deref())?;
    let sampling = args.sampling.options()?;
    let constraint = args.constraint.source()?;
    let mut loaded = args.engine.load()?;
    let template = if args.raw { None } else { loaded.chat_template()? };
    let request = GenerateRequest {
        prompt: encode(args, &loaded, template, &prompt)?,
        max_tokens: args.sampling.max_tokens.or(template.is_none().then_some(COMPLETION_TOKENS)),
        sampling,
        stop: args.sampling.stop.clone(),
        logprobs: args.logprobs,
        constraint,
        ..GenerateRequest::default()
    };
    loaded.check_fits(request.prompt.len())?;

    let interrupt = Interrupt::install()?;
    let mut session = loaded.session()?;
    let stream = Stream { print: !args.json, interrupt: &interrupt };
    let generation = stream.run(&mut loaded.engine, &mut session, &request)?;

    let mut out = io::stdout().lock();
    if args.json {
        let report = Report::new(&generation, &loaded, args.logprobs.is_some());
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else if !generation.text.ends_with('\n') {
        writeln!(out)?;
    }
    if args.verbose || (!args.json && io::stderr().is_terminal()) {
        eprintln!("{}", statistics(&generation));
    }
    if generation.stop == StopReason::Cancelled { Err(Interrupted.into()) } else { Ok(()) }
}

/// The prompt's tokens: as a chat where there is a template, as plain text otherwise.
fn encode(
    args: &Args,
    loaded: &Loaded,
    template: Option<&ChatTemplate>,
    prompt: &str,
) -> anyhow::Result<Vec<u32>> {
    let tokenizer = loaded.engine.tokenizer()?;
    match template {
        Some(template) => {
            let mut conversation = Conversation::new(args.system.clone());
            conversation.ask(prompt);
            encode_chat(template, tokenizer, &conversation)
        }
        None if args.chat || args.system.is_some() => {
            bail!(
                "{} has no chat template, it is a base model: use --raw to have the text continued",
                loaded.name()
            )
        }
        None => Ok(tokenizer.encode(prompt, EncodeOptions { add_special: true, parse_special: true })?),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    prompt_token_ids: &'a [u32],
    completion_token_ids: &'a [u32],
    prompt_tokens: usize,
    completion_tokens: usize,
    stop_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_string: Option<&'a str>,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    time_to_first_token_seconds: f64,
    peak_resident_bytes: Option<u64>,
    kv: String,
    kv_bytes_in_use: usize,
    kv_bytes_in_files: usize,
    kv_bytes_uncompressed_bf16: usize,
    model: &'a Path,
    threads: usize,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Token<'a>>>,
}

/// How likely a token was, and what else could have stood there, most likely first.
#[derive(Serialize)]
struct Token<'a> {
    id: u32,
    logprob: f32,
    top: &'a [(u32, f32)],
}

impl<'a> Report<'a> {
    fn new(generation: &'a Generation, loaded: &'a Loaded, with_logprobs: bool) -> Report<'a> {
        let tokens = generation.logprobs.iter();
        let tokens = tokens.map(|token| Token { id: token.id, logprob: token.logprob, top: &token.top });
        Report {
            text: &generation.text,
            prompt_token_ids: &generation.prompt_ids,
            completion_token_ids: &generation.completion_ids,
            prompt_tokens: generation.prompt_ids.len(),
            completion_tokens: generation.completion_ids.len(),
            stop_reason: stop_reason(&generation.stop),
            stop_string: match &generation.stop {
                StopReason::StopString(stop) => Some(stop),
                _ => None,
            },
            prefill_tokens_per_second: generation.prefill_tokens_per_second(),
            decode_tokens_per_second: generation.decode_tokens_per_second(),
            time_to_first_token_seconds: generation.time_to_first_token_seconds,
            peak_resident_bytes: counters::peak_resident_bytes(),
            kv: loaded.pipeline.to_string(),
            kv_bytes_in_use: generation.kv_bytes_in_use,
            kv_bytes_in_files: generation.kv_bytes_in_files,
            kv_bytes_uncompressed_bf16: generation.kv_bytes_uncompressed_bf16,
            model: &loaded.path,
            threads: loaded.engine.threads(),
            seed: generation.seed,
            logprobs: with_logprobs.then(|| tokens.collect()),
        }
    }
}

fn stop_reason(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::EndOfText => "end_of_text",
        StopReason::StopString(_) => "stop_string",
        StopReason::MaxTokens => "max_tokens",
        StopReason::ContextFull => "context_full",
        StopReason::Cancelled => "cancelled",
        StopReason::Deadline => "deadline",
    }
}
