//! What is under test: a model whose sequences can be prefilled, forked, asked and led.
//!
//! A [`Subject`] holds one model and several *variants* of its cache, the full one first. All that an evaluation asks of
//! it are six verbs, so that tests can put a closed formula in its place, and so that a model behind a network could be
//! judged by the same tasks.

mod engine;

pub use engine::{EngineSequence, EngineSubject, SESSIONS};

use crate::EvalError;

/// The name of the variant that keeps everything.
pub const FULL: &str = "full";

/// A model with several variants of its cache.
pub trait Subject {
    /// One sequence under one variant, with the logits after its last token.
    type Sequence;

    /// The variants, written as the command line writes them; the first is [`FULL`].
    fn variants(&self) -> &[String];

    /// Tokens that a sequence can hold.
    fn context_tokens(&self) -> usize;

    /// A new sequence of `tokens`, at least one, read as a prompt under `variant`; the method has acted at its end.
    ///
    /// # Errors
    /// Whatever stops the model.
    fn prefill(&mut self, variant: usize, tokens: &[u32]) -> Result<Self::Sequence, EvalError>;

    /// Puts `tokens`, at least one, behind a sequence: read as further input, not as a prompt of its own.
    ///
    /// # Errors
    /// Whatever stops the model.
    fn append(&mut self, sequence: &mut Self::Sequence, tokens: &[u32]) -> Result<(), EvalError>;

    /// A second sequence that begins like this one. What happens to either leaves the other as it is.
    ///
    /// # Errors
    /// Whatever stops the model.
    fn fork(&mut self, sequence: &Self::Sequence) -> Result<Self::Sequence, EvalError>;

    /// Decodes one token: the logits `[vocab]` after it stand in [`logits`](Self::logits).
    ///
    /// # Errors
    /// Whatever stops the model.
    fn decode(&mut self, sequence: &mut Self::Sequence, token: u32) -> Result<(), EvalError>;

    /// The logits `[vocab]` about the token that follows.
    fn logits<'a>(&self, sequence: &'a Self::Sequence) -> &'a [f32];

    /// Bytes of RAM that the allocator holds for the keys and values of a sequence.
    fn kv_bytes(&self, sequence: &Self::Sequence) -> usize;

    /// Bytes of files that they take; none, for a subject that has no files.
    fn kv_file_bytes(&self, sequence: &Self::Sequence) -> usize {
        let _ = sequence;
        0
    }
}

/// The most likely token, the lowest id of several; `None` when no logit is finite.
pub fn most_likely(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, most)| logit > most) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id as u32)
}
