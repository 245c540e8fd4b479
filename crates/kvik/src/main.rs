//! The `kvik` command: a match over what the user asked for.

#![forbid(unsafe_code)]

mod commands;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{
    Interrupted, bench, calibrate, chat, eval, generate, inspect, methods, microscope, pull, replay,
    reproduce, score, serve, tokenize, trace,
};

/// Kvik runs language models on this machine: one binary, no set-up.
#[derive(Debug, Parser)]
#[command(name = "kvik", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  kvik generate \"Why is the sky blue?\"
  kvik chat
  kvik serve
  kvik generate --model path/to/model.gguf --file question.txt

A MODEL is a path to a GGUF file or a safetensors folder, a name that `kvik pull --list` shows, \
or owner/name[:file] from the Hugging Face hub. What is not on this machine is fetched on first use.";

#[derive(Debug, Subcommand)]
enum Verb {
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Pull(pull::Args),
    Inspect(inspect::Args),
    Tokenize(tokenize::Args),
    Score(score::Args),
    Methods(methods::Args),
    Microscope(microscope::Args),
    Bench(bench::Args),
    Eval(eval::Args),
    Replay(replay::Args),
    Reproduce(reproduce::Args),
    Trace(trace::Args),
    Calibrate(calibrate::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Generate(args) => generate::run(&args),
        Verb::Chat(args) => chat::run(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Pull(args) => pull::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Tokenize(args) => tokenize::run(&args),
        Verb::Score(args) => score::run(&args),
        Verb::Methods(args) => methods::run(&args),
        Verb::Microscope(args) => microscope::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Eval(args) => eval::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Trace(args) => trace::run(&args),
        Verb::Reproduce(args) => reproduce::run(&args),
        Verb::Calibrate(args) => calibrate::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => ExitCode::from(130),
        // Whoever read our output has seen enough, as `| head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(is_pipe))
}

/// The error and its causes, leaving out those that the text before already tells. An I/O error without a context is one
/// of printing the result; all others come with what they are about.
fn sentence(error: &anyhow::Error) -> String {
    let printing = error.chain().next().is_some_and(|outermost| outermost.is::<io::Error>());
    let mut text = if printing { "cannot write to standard output".to_owned() } else { error.to_string() };
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
