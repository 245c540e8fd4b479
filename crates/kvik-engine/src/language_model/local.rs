//! The transformer of `kvik-model` in this process, with the store of its sequences.

use super::{KvBytes, LanguageModel, LogitRows, TextDecoder, Vocabulary};
use crate::error::EngineError;
use kvik_kernels::ThreadPool;
use kvik_kv::{KvStore, SequenceCache};
use kvik_model::{Logits, Model, Span, StreamDecoder, Tokenizer, Workspace};

/// A loaded model and what its forward passes need.
pub(crate) struct LocalModel {
    pub(crate) model: Model,
    pub(crate) store: KvStore,
    workspace: Workspace,
}

impl LocalModel {
    /// Room for `sequences` sequences of up to `context_tokens`, extended by up to `step_tokens` at once.
    ///
    /// # Errors
    /// When the system refuses the address space.
    pub(crate) fn new(
        model: Model,
        pool: &ThreadPool,
        sequences: usize,
        context_tokens: usize,
        step_tokens: usize,
    ) -> Result<Self, EngineError> {
        let store = KvStore::new(model.kv_shape(), sequences, context_tokens, step_tokens)?;
        let workspace = model.workspace(pool, context_tokens);
        Ok(Self { model, store, workspace })
    }

    /// The model with the sequence whose cache is `cache`.
    pub(crate) fn bind<'a>(&'a mut self, pool: &'a ThreadPool, cache: &'a mut SequenceCache) -> BoundModel<'a> {
        BoundModel { local: self, pool, cache }
    }
}

/// A model bound to one sequence for the length of a request.
pub(crate) struct BoundModel<'a> {
    local: &'a mut LocalModel,
    pool: &'a ThreadPool,
    cache: &'a mut SequenceCache,
}

impl LanguageModel for BoundModel<'_> {
    fn vocab_size(&self) -> usize {
        self.local.model.config().vocab_size
    }

    fn forward(&mut self, tokens: &[u32], rows: LogitRows) -> Result<&[f32], EngineError> {
        let logits = match rows {
            LogitRows::None => Logits::None,
            LogitRows::Last => Logits::Last,
            LogitRows::All => Logits::All,
        };
        let LocalModel { model, store, workspace } = &mut *self.local;
        let span = Span { cache: &mut *self.cache, tokens, logits };
        model.forward(self.pool, workspace, store, &mut [span]).map_err(|error| {
            let len = self.cache.len();
            self.cache.truncate(store, len);
            error.into()
        })
    }

    fn truncate(&mut self, tokens: usize) -> usize {
        self.cache.truncate(&mut self.local.store, tokens)
    }

    fn kv_bytes(&self) -> KvBytes {
        let store = &self.local.store;
        KvBytes {
            in_use: self.cache.used_bytes(store),
            uncompressed_bf16: store.shape().bf16_bytes(self.cache.len()),
        }
    }
}
