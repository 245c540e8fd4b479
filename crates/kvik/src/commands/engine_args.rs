//! Which model runs and how: the options that every verb with a model shares.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use kvik_engine::{Engine, EngineOptions, Session};
use kvik_kernels::Isa;
use kvik_kv::Pipeline;
use kvik_model::ChatTemplate;

use super::model_args::ModelArgs;
use super::numbers::whole;

/// Which model runs, how, and with which cache.
#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    kv: KvArgs,
}

/// Which model runs and how.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
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

/// What becomes of the keys and values.
#[derive(Debug, clap::Args)]
pub struct KvArgs {
    /// Methods that rewrite the cache, such as 'snapkv(budget=512)+kivi(bits=2)'; `kvik methods` lists them
    #[arg(long = "kv", value_name = "PIPELINE", default_value = "full", help_heading = "Cache")]
    #[arg(value_parser = Pipeline::parse)]
    pub pipeline: Pipeline,
}

/// An engine, the path of the model in it, and the methods that its sessions are to have.
pub struct Loaded {
    pub engine: Engine,
    pub path: PathBuf,
    pub pipeline: Pipeline,
}

impl EngineArgs {
    /// Loads the model, fetched on first use.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        self.load.with(EngineOptions::default().sessions, self.kv.pipeline.clone())
    }
}

impl LoadArgs {
    /// Loads the model, fetched on first use, with room for `sessions` full contexts, whose caches `pipeline` rewrites.
    pub fn with(&self, sessions: usize, pipeline: Pipeline) -> anyhow::Result<Loaded> {
        if let Err(unknown) = Isa::requested() {
            bail!("KVIK_ISA: {unknown}");
        }
        let path = self.model.path()?;
        let options = EngineOptions {
            threads: self.threads,
            context_tokens: self.ctx,
            prefill_chunk_tokens: self.prefill_chunk,
            sessions,
            pipeline: pipeline.clone(),
        };
        let engine = Engine::load(&path, &options)?;
        Ok(Loaded { engine, path, pipeline })
    }
}

impl Loaded {
    /// A new session with the pipeline that was asked for.
    pub fn session(&self) -> anyhow::Result<Session> {
        Ok(self.engine.session_with(&self.pipeline)?)
    }

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
