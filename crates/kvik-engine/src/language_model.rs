//! The seam to the model below: all that generation and scoring ask of it.
//!
//! [`LanguageModel`] is one model bound to one sequence. The loops above it are written against this trait and not
//! against the transformer, so that they can be tested with models whose distribution is a closed formula; a draft
//! model, or a model split over several machines, sits behind the same four verbs.

use crate::error::EngineError;

/// For which of the tokens given to [`LanguageModel::forward`] logits are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogitRows {
    /// None: the tokens only enter the cache.
    None,
    /// The last token's: `[1, vocab]`.
    Last,
    /// Every token's: `[tokens, vocab]`.
    All,
}

/// What the keys and values of a sequence take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvBytes {
    /// Bytes held for the sequence.
    pub(crate) in_use: usize,
    /// Bytes that the same tokens would take in bf16 in every layer.
    pub(crate) uncompressed_bf16: usize,
}

/// A model and the cache of one sequence.
pub(crate) trait LanguageModel {
    /// How many tokens the model knows; ids are below.
    fn vocab_size(&self) -> usize;

    /// Appends `tokens` to the sequence and returns the logits of the tokens that should follow those named by `rows`.
    ///
    /// # Errors
    /// Whatever stops the model; the sequence is then as it was.
    fn forward(&mut self, tokens: &[u32], rows: LogitRows) -> Result<&[f32], EngineError>;

    /// Forgets all but the first `tokens` of the sequence and returns how many remain: `tokens`, or 0 where a sliding
    /// window has already forgotten what the shorter sequence would need.
    fn truncate(&mut self, tokens: usize) -> usize;

    /// What the sequence takes in memory.
    fn kv_bytes(&self) -> KvBytes;
}

/// What generation needs of a tokenizer.
pub(crate) trait Vocabulary {
    /// Whether the model ends its text, or its turn, with this token.
    fn is_end_of_text(&self, id: u32) -> bool;

    /// The token that begins a text, where there is one.
    fn beginning_of_text(&self) -> Option<u32>;

    /// A decoder for one stream of tokens.
    fn decoder(&self) -> Box<dyn TextDecoder + '_>;
}

/// Turns a stream of tokens into text; a character may be spread over several tokens.
pub(crate) trait TextDecoder {
    /// Takes the next token and appends the characters that are complete to `text`.
    fn push(&mut self, id: u32, text: &mut String);

    /// The stream has ended: appends what an unfinished character is replaced by.
    fn finish(&mut self, text: &mut String);
}

#[cfg(test)]
pub(crate) mod fake;
