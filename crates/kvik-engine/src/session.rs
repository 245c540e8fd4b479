//! One sequence: the tokens whose keys and values are cached, and what of them a new prompt can use.
//!
//! A chat sends its whole history with each turn, and all but the last message was computed before. A session keeps
//! the keys and values of the tokens it has seen; a new prompt that begins like them starts where they part.

use crate::{
    error::EngineError,
    language_model::{LanguageModel, LogitRows},
};
use std::ops::ControlFlow;

/// A session bound to its model for the length of a request.
///
/// Holds that the model's cache has exactly `tokens`.
pub(crate) struct Sequence<'a> {
    pub(crate) model: &'a mut dyn LanguageModel,
    pub(crate) tokens: &'a mut Vec<u32>,
}

/// What is known about the token that comes next.
#[derive(Clone, Copy)]
pub(crate) struct Next<'a> {
    /// The model's logits for it: `[vocab]`, or a row for each token that [`LogitRows`] named.
    pub(crate) logits: &'a [f32],
    /// All tokens before it.
    pub(crate) history: &'a [u32],
}

impl Sequence<'_> {
    /// Keeps the beginning that `prompt` shares with the cached tokens and returns how many tokens that is.
    ///
    /// The last token of the prompt is never among them: its logits are needed, and only computing it gives them.
    pub(crate) fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(prompt).take_while(|(cached, asked)| cached == asked).count();
        let kept = self.model.truncate(shared.min(prompt.len().saturating_sub(1)));
        self.tokens.truncate(kept);
        kept
    }

    /// Appends `tokens`, with the logits that `rows` asks for.
    pub(crate) fn extend(&mut self, tokens: &[u32], rows: LogitRows) -> Result<Next<'_>, EngineError> {
        let logits = self.model.forward(tokens, rows)?;
        self.tokens.extend_from_slice(tokens);
        Ok(Next { logits, history: self.tokens })
    }

    /// Appends `tokens` in pieces of at most `chunk_tokens`, with logits after the last.
    ///
    /// `on_chunk(done)` hears of each piece and may stop between them; then the result is a break.
    pub(crate) fn prefill(
        &mut self,
        tokens: &[u32],
        chunk_tokens: usize,
        mut on_chunk: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), Next<'_>>, EngineError> {
        let mut rest = tokens;
        while let Some((chunk, tail)) =
            rest.split_at_checked(chunk_tokens).filter(|(_, tail)| !tail.is_empty())
        {
            self.extend(chunk, LogitRows::None)?;
            rest = tail;
            if on_chunk(tokens.len() - rest.len()).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let next = self.extend(rest, LogitRows::Last)?;
        Ok(on_chunk(tokens.len()).map_continue(|()| next))
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
