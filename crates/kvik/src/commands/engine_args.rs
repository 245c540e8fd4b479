//! Which model runs and how: the options that every verb with a model shares.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use kvik_engine::{Engine, EngineOptions};
use kvik_kernels::Isa;
use kvik_model::ChatTemplate;

use super::model_args::ModelArgs;
use super::numbers::whole;

#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Threads to compute on [default: one for each core]
    #[arg(long, short, value_name = "N", help_heading = "Model")]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Longest sequence in tokens, prompt and answer together [default: what the model was trained for]
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    ctx: Option<usize>,
    /// Prompt tokens computed at once; the result does not depend on it
    #[arg(long, value_name = "TOKENS", default_value_t = EngineOptions::default().prefill_chunk_tokens)]
    #[arg(help_heading = "Model", value_parser = whole::<usize>, allow_negative_numbers = true)]
    prefill_chunk: usize,
}

/// An engine, and the path of the model in it.
pub struct Loaded {
    pub engine: Engine,
    pub path: PathBuf,
}

impl EngineArgs {
    /// Loads the model, fetched on first use.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        self.load_for(EngineOptions::default().sessions)
    }

    /// Loads the model, fetched on first use, with room for `sessions` full contexts.
    pub fn load_for(&self, sessions: usize) -> anyhow::Result<Loaded> {
        if let Err(unknown) = Isa::requested() {
            bail!("KVIK_ISA: {unknown}");
        }
        let path = self.model.path()?;
        let options = EngineOptions {
            threads: self.threads,
            context_tokens: self.ctx,
            prefill_chunk_tokens: self.prefill_chunk,
            sessions,
        };
        let engine = Engine::load(&path, &options)?;
        Ok(Loaded { engine, path })
    }
}

impl Loaded {
    /// The model's name for people: that of its file or folder.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// How the model wants a conversation written; a base model has none.
    pub fn chat_template(&self) -> anyhow::Result<Option<&ChatTemplate>> {
        self.engine.chat_template().map_err(|error| anyhow!("{error}"))
    }

    /// Fails with what to do if `tokens` leave no room for an answer.
    pub fn check_fits(&self, tokens: usize) -> anyhow::Result<()> {
        let (holds, trained) = (self.engine.context_tokens(), self.engine.model_config().trained_context);
        if tokens < holds {
            return Ok(());
        }
        let way_out = if holds < trained { "shorten it or raise --ctx" } else { "shorten it" };
        bail!(
            "the prompt has {tokens} tokens, the context holds {holds}: {way_out} (the model was trained for {trained})"
        )
    }
}
