//! `kvik-train duo`: gates for DuoAttention.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{fs, io};

use anyhow::Context;
use kvik::models::DEFAULT;
use kvik_eval::data::DataFolder;
use kvik_kernels::ThreadPool;
use kvik_kv::{Calibration, CalibrationHeader};
use kvik_model::{Checkpoint, Tokenizer};
use kvik_train::{
    duo::{Settings, data::Passkeys, train::Training},
    frozen::FrozenLlama,
};
use signal_hook::{consts::SIGINT, flag};

/// Train DuoAttention's gates: which KV heads need the whole sequence
///
/// Every KV head gets a number between 0 (sinks and recent tokens are enough for it) and 1 (it needs everything), found by gradient
/// descent on texts with pass keys in them. The model must be a Llama (Llama 2 and 3, SmolLM2, Mistral without a window); its weights
/// stay as they are and take 4 bytes each. A step reads one text forwards twice and backwards once.
///
/// Ctrl-C ends the run after the step at hand and writes what it has; the file says how many steps were done.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A path, a name that `kvik pull --list` shows, or owner/name[:file] from the Hugging Face hub
    #[arg(long, short, default_value = DEFAULT)]
    model: String,
    /// Where the gates go: a safetensors file that the method `duo` reads
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Steps, of one text each; 2000 in the paper
    #[arg(long, default_value_t = 200, help_heading = "Training")]
    steps: usize,
    /// Learning rate between its ramps over the first and the last fifth of the steps
    #[arg(long, default_value_t = 0.02, value_name = "RATE", help_heading = "Training")]
    learning_rate: f64,
    /// What the mean gate costs: more makes more heads streaming heads
    #[arg(long, default_value_t = 0.05, value_name = "FACTOR", help_heading = "Training")]
    penalty: f32,
    /// First tokens that streaming heads see; 128 in the paper
    #[arg(long, default_value_t = 16, value_name = "TOKENS", help_heading = "Training")]
    sink: usize,
    /// Last tokens that streaming heads see; 256 in the paper
    #[arg(long, default_value_t = 64, value_name = "TOKENS", help_heading = "Training")]
    recent: usize,
    /// Longest texts; 32000 tokens in the paper
    #[arg(long, default_value_t = 512, help_heading = "Texts")]
    tokens: usize,
    /// Shortest texts; two thirds of the longest if not given
    #[arg(long, value_name = "TOKENS", help_heading = "Texts")]
    min_tokens: Option<usize>,
    /// Pass keys in a text; 10 in the paper
    #[arg(long, default_value_t = 4, help_heading = "Texts")]
    keys: usize,
    /// Words of a pass key; 32 in the paper
    #[arg(long, default_value_t = 8, help_heading = "Texts")]
    words: usize,
    /// Text file to hide them in; War and Peace if not given
    #[arg(long, value_name = "FILE", help_heading = "Texts")]
    data: Option<PathBuf>,
    /// How much of War and Peace: what comes with Kvik is enough for 50000 bytes, more is read from the folder KVIK_DATA
    #[arg(
        long,
        default_value_t = 50_000,
        value_name = "BYTES",
        conflicts_with = "data",
        help_heading = "Texts"
    )]
    novel: usize,
    /// Of the texts: the same seed gives the same ones
    #[arg(long, default_value_t = 0, help_heading = "Texts")]
    seed: u64,
}

const EXAMPLES: &str = "\
Examples:
  kvik-train duo -o gates.safetensors
  kvik-train duo --model path/to/llama.gguf --steps 500 --tokens 1024 -o gates.safetensors
  kvik generate --model path/to/llama.gguf --kv 'duo(gates=gates.safetensors)' \"...\"";

impl Args {
    fn settings(&self) -> Settings {
        Settings {
            steps: self.steps,
            min_tokens: self.min_tokens.unwrap_or(2 * self.tokens / 3),
            max_tokens: self.tokens,
            keys: self.keys,
            words: self.words,
            sink: self.sink,
            recent: self.recent,
            learning_rate: self.learning_rate,
            penalty: self.penalty,
            seed: self.seed,
        }
    }
}

/// What the file says of how it was made.
#[derive(serde::Serialize)]
struct Made {
    #[serde(flatten)]
    settings: Settings,
    /// Steps that were done, of those in the settings.
    done: usize,
    /// Distance between the copies over the last tenth of the steps.
    last_distance: f32,
}

/// Trains and writes the file.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings();
    settings.check()?;
    let parent = args.out.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        anyhow::bail!("there is no folder {} to write to", parent.display());
    }
    let checkpoint = Checkpoint::open(&kvik::pull::ensure(&args.model)?)?;
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint)?;
    let (name, novel) = text(args)?;
    let passkeys = Passkeys::new(&tokenizer, &novel, settings)?;
    passkeys.sequence(0)?;
    let threads = std::thread::available_parallelism()?.get();
    let model = FrozenLlama::load(&checkpoint, &ThreadPool::new(threads))?;

    let mut training = Training::new(&model, &passkeys, settings);
    let distances = train(&mut training, settings.steps)?;
    let last = &distances[distances.len() - distances.len().div_ceil(10)..];
    let made = Made {
        settings,
        done: training.done(),
        last_distance: last.iter().sum::<f32>() / last.len().max(1) as f32,
    };
    let header = CalibrationHeader {
        method: "duo".to_owned(),
        model: model_name(&checkpoint),
        fingerprint: checkpoint.fingerprint(),
        data: format!("pass keys in {} bytes of {name}", novel.len()),
        settings: serde_json::to_string(&made)?,
    };
    let (shape, gates) = ([model.layers(), model.kv_heads()], training.gates());
    let file = Calibration::file(&header, &[("gates", &shape, &gates)]);
    write(&args.out, &file).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}: {} of {} steps", args.out.display(), training.done(), settings.steps);
    Ok(())
}

/// What pass keys are hidden in, and what it is called.
fn text(args: &Args) -> anyhow::Result<(String, Cow<'static, str>)> {
    let Some(path) = &args.data else {
        return Ok(("War and Peace".to_owned(), DataFolder::from_env().novel(args.novel)?));
    };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((name, text.into()))
}

/// Steps until all are done or Ctrl-C is pressed; a second press ends the process. Returns the distance in each.
fn train(training: &mut Training<'_>, steps: usize) -> anyhow::Result<Vec<f32>> {
    let pressed = Arc::new(AtomicBool::new(false));
    flag::register_conditional_default(SIGINT, Arc::clone(&pressed))?;
    flag::register(SIGINT, Arc::clone(&pressed))?;
    let mut distances = Vec::new();
    while training.done() < steps && !pressed.load(Ordering::SeqCst) {
        let start = Instant::now();
        let loss = training.step()?;
        distances.push(loss.distance);
        eprintln!(
            "step {:>4} of {steps}  distance {:.5}  mean gate {:.4}  {:.1} s",
            training.done(),
            loss.distance,
            loss.mean_gate,
            start.elapsed().as_secs_f64()
        );
    }
    Ok(distances)
}

fn model_name(checkpoint: &Checkpoint) -> String {
    let path = checkpoint.path();
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Writes a file that is either whole or not there.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, bytes)?;
    fs::rename(&part, path)
}
