//! One sequence: the tokens whose keys and values are cached, and what of them a new prompt can use.
//!
//! A chat sends its whole history with each turn, and all but the last message was computed before. A session keeps
//! the keys and values of the tokens it has seen; a new prompt that begins like them starts where they part.

use crate::{common_prefix::common_prefix, error::EngineError, language_model::LanguageModel};
use kvik_kv::SequenceCache;
use kvik_model::layers::{Logits, Phase, Rows};
use std::ops::ControlFlow;

/// One sequence of an engine: its cached keys and values, and the tokens that they are of.
pub struct Session {
    pub(crate) cache: SequenceCache,
    pub(crate) tokens: Vec<u32>,
}

impl Session {
    /// A session around an empty `cache`.
    pub(crate) fn new(cache: SequenceCache) -> Self {
        // Room for all tokens, so that decoding does not allocate.
        Self { tokens: Vec::with_capacity(cache.capacity_tokens()), cache }
    }

    /// A session that goes on from `cache`, which has the keys and values of `tokens`.
    ///
    /// # Panics
    /// If it has those of another number of tokens.
    pub fn resume(cache: SequenceCache, tokens: &[u32]) -> Self {
        assert_eq!(cache.len(), tokens.len(), "a cache has the tokens that it is of");
        let mut session = Self::new(cache);
        session.tokens.extend_from_slice(tokens);
        session
    }

    /// The keys and values.
    pub fn cache(&self) -> &SequenceCache {
        &self.cache
    }

    /// The tokens whose keys and values are cached: what a prompt that begins with them need not compute again.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets everything and gives the memory back.
    pub fn clear(&mut self) {
        self.cache.clear();
        self.tokens.clear();
    }
}

/// A session bound to its model for the length of a request.
///
/// Holds that the model's cache has exactly `tokens`.
pub(crate) struct Sequence<'a> {
    pub(crate) model: &'a mut dyn LanguageModel,
    pub(crate) tokens: &'a mut Vec<u32>,
}

impl Sequence<'_> {
    /// Keeps the beginning that `prompt` shares with the cached tokens and returns how many tokens that is.
    ///
    /// The last token of the prompt is never among them: its logits are needed, and only computing it gives them.
    pub(crate) fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let shared = common_prefix(self.tokens, prompt);
        let kept = self.model.truncate(shared.min(prompt.len().saturating_sub(1)));
        self.tokens.truncate(kept);
        kept
    }

    /// Appends `tokens` and returns the `wanted` logits, `[wanted tokens, vocab]`.
    pub(crate) fn extend(
        &mut self,
        tokens: &[u32],
        wanted: Logits,
        phase: Phase,
    ) -> Result<Rows, EngineError> {
        let logits = self.model.forward(tokens, wanted, phase)?;
        self.tokens.extend_from_slice(tokens);
        Ok(logits)
    }

    /// Appends `tokens` in pieces of at most `chunk_tokens`, and returns the logits `[1, vocab]` after the last.
    ///
    /// `on_chunk(done)` hears of each piece and may stop between them; then the result is a break.
    pub(crate) fn prefill(
        &mut self,
        tokens: &[u32],
        chunk_tokens: usize,
        mut on_chunk: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Rows>, EngineError> {
        let mut rest = tokens;
        while let Some((chunk, tail)) =
            rest.split_at_checked(chunk_tokens).filter(|(_, tail)| !tail.is_empty())
        {
            self.extend(chunk, Logits::None, Phase::Prefill)?;
            rest = tail;
            if on_chunk(tokens.len() - rest.len()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let logits = self.extend(rest, Logits::Last, Phase::Prefill)?;
        self.model.end_of_prompt()?;
        Ok(on_chunk(tokens.len()).map_continue(|()| logits))
    }
}

/// Checks that the model knows every token.
///
/// # Errors
/// [`EngineError::UnknownToken`] names the first that it does not.
pub(crate) fn check_vocabulary(ids: &[u32], vocab_size: usize) -> Result<(), EngineError> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        Some(position) => Err(EngineError::UnknownToken { id: ids[position], position, vocab_size }),
        None => Ok(()),
    }
}
