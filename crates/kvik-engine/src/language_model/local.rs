//! The transformer of `kvik-model` in this process, with the store of its sequences.

use super::{KvBytes, LanguageModel};
use crate::error::EngineError;
use kvik_kernels::ThreadPool;
use kvik_kv::{KvStore, SequenceCache};
use kvik_model::{
    Model,
    layers::{Logits, Phase, Rows, Span, Workspace},
};

/// A loaded model and what its forward passes need.
pub(crate) struct LocalModel {
    pub(crate) model: Model,
    pub(crate) store: KvStore,
    pub(crate) workspace: Workspace,
}

impl LocalModel {
    /// The model with the sequence whose cache is `cache`.
    pub(crate) fn bind<'a>(
        &'a mut self,
        pool: &'a ThreadPool,
        cache: &'a mut SequenceCache,
    ) -> BoundModel<'a> {
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
        self.local.model.config().vocabulary
    }

    fn forward(&mut self, tokens: &[u32], wanted: Logits, phase: Phase) -> Result<Rows, EngineError> {
        let LocalModel { model, store, workspace } = &mut *self.local;
        let span = Span { cache: self.cache, tokens, logits: wanted, phase };
        Ok(model.forward(self.pool, workspace, store, &mut [span])?)
    }

    fn end_of_prompt(&mut self) -> Result<(), EngineError> {
        Ok(self.cache.end_of_prompt(self.pool, &mut self.local.store)?)
    }

    fn truncate(&mut self, tokens: usize) -> usize {
        self.cache.truncate(&mut self.local.store, tokens)
    }

    fn kv_bytes(&self) -> KvBytes {
        let store = &self.local.store;
        KvBytes {
            in_use: self.cache.used_bytes(store),
            in_files: self.cache.file_bytes(store),
            uncompressed_bf16: store.shape().bf16_bytes(self.cache.len()),
        }
    }
}
