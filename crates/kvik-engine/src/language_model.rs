//! The seam to the model below: all that generation and scoring ask of it.
//!
//! [`LanguageModel`] is one model bound to one sequence. The loops above it are written against this trait and not
//! against the transformer, so that they can be tested with a model whose distribution is a closed formula; a draft
//! model, or a model split over several machines, fits behind the same four verbs.

mod local;

use crate::error::EngineError;
use kvik_model::layers::{Logits, Phase, Rows};

pub(crate) use local::LocalModel;

/// What the keys and values of a sequence take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvBytes {
    /// Bytes of RAM held for the sequence.
    pub(crate) in_use: usize,
    /// Bytes of files held for it.
    pub(crate) in_files: usize,
    /// Bytes that the same tokens would take in bf16 at every layer.
    pub(crate) uncompressed_bf16: usize,
}

/// A model and the cache of one sequence.
pub(crate) trait LanguageModel {
    /// How many tokens the model knows; ids are below.
    fn vocab_size(&self) -> usize;

    /// Appends `tokens`, computed as those of `phase`, to the sequence and returns the logits that `wanted` names: `[wanted tokens, vocab]`, each row
    /// about the token that follows.
    ///
    /// # Errors
    /// Whatever stops the model; the sequence is then as it was.
    fn forward(&mut self, tokens: &[u32], wanted: Logits, phase: Phase) -> Result<Rows, EngineError>;

    /// Says that what was appended is the end of a prompt: the cache's methods rewrite it now.
    ///
    /// # Errors
    /// What a method could not do.
    fn end_of_prompt(&mut self) -> Result<(), EngineError>;

    /// Forgets all but the first `tokens` of the sequence and returns how many remain: `tokens`, or 0 where a sliding
    /// window has already forgotten what the shorter sequence would need.
    fn truncate(&mut self, tokens: usize) -> usize;

    /// What the sequence takes in memory.
    fn kv_bytes(&self) -> KvBytes;
}

#[cfg(test)]
pub(crate) mod fake;
