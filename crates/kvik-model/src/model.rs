//! A language model: from tokens to logits.

use std::{cell::Cell, sync::Arc};

use kvik_kernels::{ThreadPool, attention::AttentionShape, matmul::PackError};
use kvik_kv::{CacheError, KvShape, KvStore, Method, Pipeline};

use crate::{
    Checkpoint,
    architectures::{self, Architecture, BuildError, Network},
    checkpoint::Format,
    layers::{Pass, Rows, Span, Workspace},
    metadata::MetadataError,
    settings::{Settings, SettingsError},
    weights::{StepWeights, Weights},
};

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Kvik has no such architecture.
    #[error("the model's architecture is '{found}', which Kvik does not run; it runs {known}")]
    UnknownArchitecture {
        /// What the file says.
        found: String,
        /// What Kvik has.
        known: String,
    },
    /// The file does not say what it is.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Its settings or weights are unfit.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Why a forward pass cannot run. The caches are as they were, unless a method of theirs failed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A token that the model does not have.
    #[error("token {token} is outside the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens that the model has.
        vocabulary: usize,
    },
    /// More tokens than the sequence can hold.
    #[error(
        "{tokens} tokens do not fit the context of {context}; shorten the prompt or use a larger context"
    )]
    ContextFull {
        /// Tokens that the sequence would have.
        tokens: usize,
        /// Tokens that it can have.
        context: usize,
    },
    /// The store has no room, or a method of the sequence's pipeline cannot go on. In the latter case the tokens may be in the
    /// cache already.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why a model's weights cannot be made ready for a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A method does not fit the model.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A changed weight cannot be packed.
    #[error("cannot change the weights as the pipeline asks: {0}")]
    Pack(#[from] PackError),
}

/// What a model is, for people and for planning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Name of its architecture.
    pub architecture: &'static str,
    /// Layers with a cache.
    pub layers: usize,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Tokens that it knows.
    pub vocabulary: usize,
    /// Context that it was trained for, in tokens.
    pub trained_context: usize,
    /// Positions that it can tell apart at most, if anything limits them.
    pub position_limit: Option<usize>,
}

/// What a pass gives.
pub struct Outputs {
    /// Logits `[wanted tokens, vocabulary]`, span after span.
    pub logits: Rows,
    /// Hidden states behind the last norm `[tokens of spans with Logits::Hidden, hidden]`, span after span.
    pub hidden: Rows,
}

/// A model with its weights, ready to run.
pub struct Model {
    network: Box<dyn Network>,
    config: ModelConfig,
    kv_shape: KvShape,
    step_weights: StepWeights,
}

impl Model {
    /// Loads the model in `checkpoint`, to be used with contexts of up to `context_tokens` (the trained context if not
    /// given): some kinds of rotary scaling depend on it.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is unknown, or settings or weights are missing, damaged or do not fit.
    pub fn load(
        checkpoint: &Checkpoint,
        pool: &ThreadPool,
        context_tokens: Option<usize>,
    ) -> Result<Self, ModelError> {
        let (architecture, name) = find_architecture(checkpoint)?;
        let mut settings = Settings::new(checkpoint, name);
        let trained_context = settings.count("context_length", "max_position_embeddings").map_err(build)?;
        settings.context_tokens = context_tokens.unwrap_or(trained_context);
        let loaded = Cell::new(StepWeights::default());
        let weights = Weights::new(checkpoint, pool, architecture.names, &loaded);
        let network = (architecture.build)(&settings, &weights)?;
        let layers: Vec<_> = network.attention_layers().iter().map(|layer| layer.cache_shape()).collect();
        let rotary =
            (0..layers.len()).map(|layer| Some(Arc::new(network.rope(layer)?.rotary().clone()))).collect();
        let config = ModelConfig {
            architecture: architecture.name,
            layers: layers.len(),
            hidden_size: settings.count("embedding_length", "hidden_size").map_err(build)?,
            vocabulary: network.vocabulary(),
            trained_context,
            position_limit: network.position_limit(),
        };
        Ok(Self {
            network,
            config,
            kv_shape: KvShape { layers, rotary, fingerprint: checkpoint.fingerprint(), basis: String::new() },
            step_weights: loaded.get(),
        })
    }

    /// Builds into the weights what the methods of `pipeline` ask for: from then on its sequences have that pipeline's methods,
    /// or none.
    ///
    /// # Errors
    /// [`PrepareError`] if a method does not fit the model, or there is no memory.
    pub fn prepare_for(&mut self, pool: &ThreadPool, pipeline: &Pipeline) -> Result<(), PrepareError> {
        let methods = pipeline.build(&self.kv_shape)?;
        self.change_value_bases(pool, &methods)?;
        self.kv_shape.basis = pipeline.basis(&methods);
        Ok(())
    }

    /// Builds the bases that `methods` ask for into the weights ([`Method::value_bases`]).
    ///
    /// # Errors
    /// [`PackError`] if there is no memory.
    pub fn change_value_bases(
        &mut self,
        pool: &ThreadPool,
        methods: &[Box<dyn Method>],
    ) -> Result<(), PackError> {
        let layers = self.network.attention_layers_mut().into_iter().enumerate();
        for ((index, attention), shape) in layers.zip(&mut self.kv_shape.layers) {
            for method in methods {
                if let Some(bases) = method.value_bases(index, *shape) {
                    let count = &mut self.step_weights.layers;
                    attention.value_weights().into_iter().for_each(|weight| count.remove(weight));
                    attention.change_value_bases(pool, &bases)?;
                    attention.value_weights().into_iter().for_each(|weight| count.add(weight));
                    *shape = attention.cache_shape();
                }
            }
        }
        Ok(())
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What it caches.
    pub fn kv_shape(&self) -> &KvShape {
        &self.kv_shape
    }

    /// The weights that a pass reads.
    pub fn step_weights(&self) -> StepWeights {
        self.step_weights
    }

    /// The attention of every layer, in the order of the cache's layers.
    pub fn attention_shapes(&self) -> impl Iterator<Item = &AttentionShape> {
        self.network.attention_layers().into_iter().map(|layer| layer.shape())
    }

    /// Space for its passes, on `threads` threads and over caches of up to `context_tokens` tokens.
    pub fn workspace(&self, threads: usize, context_tokens: usize) -> Workspace {
        let layers = self.network.attention_layers();
        let widest = layers.iter().max_by_key(|layer| layer.shape().heads * layer.shape().tile.value_dim);
        let shape = widest.expect("a model has at least one layer").shape();
        Workspace::new(threads, shape, context_tokens)
    }

    /// Runs the spans' tokens and adds them to their caches. Returns the logits that the spans ask for,
    /// `[wanted tokens, vocabulary]`, span after span.
    ///
    /// The logits of a token do not depend on how its sequence was cut into passes, on the other spans, or on the
    /// number of threads.
    ///
    /// # Errors
    /// [`ForwardError`]; the caches are then as they were.
    pub fn forward(
        &self,
        pool: &ThreadPool,
        workspace: &mut Workspace,
        store: &mut KvStore,
        spans: &mut [Span<'_>],
    ) -> Result<Rows, ForwardError> {
        Ok(self.run(pool, workspace, store, spans)?.logits)
    }

    /// As [`Self::forward`], with the hidden states that spans ask for.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn run(
        &self,
        pool: &ThreadPool,
        workspace: &mut Workspace,
        store: &mut KvStore,
        spans: &mut [Span<'_>],
    ) -> Result<Outputs, ForwardError> {
        for span in spans.iter() {
            self.check(span)?;
        }
        for index in 0..spans.len() {
            let span = &mut spans[index];
            if let Err(full) = span.cache.reserve(store, span.tokens.len()) {
                for span in &mut spans[..=index] {
                    let len = span.cache.len();
                    span.cache.truncate(store, len);
                }
                return Err(full.into());
            }
        }
        let mut pass = Pass::new(pool, workspace, store, spans);
        let x = self.network.forward(&mut pass);
        let (x, hidden) = pass.split_hidden(x);
        let logits = self.network.output().apply(&mut pass, &x);
        pass.commit()?;
        Ok(Outputs { logits, hidden })
    }

    fn check(&self, span: &Span<'_>) -> Result<(), ForwardError> {
        let vocabulary = self.config.vocabulary;
        if let Some(&token) = span.tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(ForwardError::UnknownToken { token, vocabulary });
        }
        let tokens = span.cache.len() + span.tokens.len();
        let context = span.cache.capacity_tokens().min(self.config.position_limit.unwrap_or(usize::MAX));
        if tokens > context {
            return Err(ForwardError::ContextFull { tokens, context });
        }
        Ok(())
    }
}

fn build(error: SettingsError) -> ModelError {
    ModelError::Build(error.into())
}

/// The architecture of a checkpoint, and what the file calls it.
///
/// # Errors
/// [`ModelError`] if the file does not say, or Kvik does not run it.
pub fn find_architecture(checkpoint: &Checkpoint) -> Result<(&'static Architecture, &str), ModelError> {
    let metadata = checkpoint.metadata();
    let (name, architecture) = match checkpoint.format() {
        Format::Gguf { .. } => {
            let name: &str = metadata.require("general.architecture")?;
            (name, architectures::ALL.iter().find(|a| a.gguf == name))
        }
        Format::Safetensors => {
            let names: Vec<&str> = metadata.require("architectures")?;
            let name = names.first().copied().unwrap_or_default();
            (name, architectures::ALL.iter().find(|a| a.hugging_face.contains(&name)))
        }
    };
    architecture.map(|architecture| (architecture, name)).ok_or_else(|| ModelError::UnknownArchitecture {
        found: name.to_owned(),
        known: architectures::ALL.iter().map(|a| a.name).collect::<Vec<_>>().join(", "),
    })
}
