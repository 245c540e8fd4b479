//! `kvik calibrate`: what a method has to learn about a model, learned once.
//!
//! Learning needs gradients, and those come from a program of their own, `kvik-train`, so that the engine is built without them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use kvik_kv::{methods::METHODS, pipeline::registry};

use super::model_args::ModelArgs;

/// The program that learns.
const TRAINER: &str = "kvik-train";

/// Learn what a method needs to know of a model, and write it to a file
///
/// The file is safetensors; its header names the method, the model and the data. A method refuses the file of another model.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The method; `kvik methods` says which ones need it
    method: String,
    /// A text to learn from [default: the novel that comes with Kvik]
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Settings of the training, as `kvik-train METHOD --help` lists them
    #[arg(last = true, value_name = "SETTINGS")]
    settings: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  kvik calibrate duo -o gates.safetensors
  kvik calibrate duo --model path/to/model.gguf --data novel.txt -o gates.safetensors -- --steps 300
  kvik generate -f report.txt --kv 'duo(gates=gates.safetensors)'

It runs the program kvik-train, found beside kvik or in PATH: cargo build --release -p kvik-train";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let Some(method) = registry::find(&args.method) else { bail!("{}", registry::unknown(&args.method)) };
    if method.calibration.is_none() {
        let needing = METHODS.iter().filter(|method| method.calibration.is_some());
        let needing: Vec<&str> = needing.map(|method| method.name).collect();
        bail!("{} needs no calibration; these do: {}", method.name, needing.join(", "));
    }
    let Some(trainer) = trainer() else {
        bail!(
            "there is no {TRAINER} beside kvik nor in PATH, and learning needs it: build it with `cargo build --release -p {TRAINER}`"
        );
    };
    let mut command = Command::new(&trainer);
    command.arg(method.name).arg("--model").arg(args.model.path()?).arg("--out").arg(&args.out);
    if let Some(data) = &args.data {
        command.arg("--data").arg(data);
    }
    let status = command.args(&args.settings).status();
    let status = status.with_context(|| format!("cannot run {}", trainer.display()))?;
    if !status.success() {
        bail!("{TRAINER} stopped: {status}");
    }
    Ok(())
}

/// Where the trainer is: in the folder of this program, or in one of PATH.
fn trainer() -> Option<PathBuf> {
    let own = env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let name = format!("{TRAINER}{}", env::consts::EXE_SUFFIX);
    beside
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(&name))
        .find(|file| file.is_file())
}
