//! The `kvik-train` command: calibrations that need gradients.

#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::duo;

/// Trains what some KV methods must learn about a model once, on its frozen weights.
#[derive(Debug, Parser)]
#[command(name = "kvik-train", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Duo(duo::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Duo(args) => duo::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
