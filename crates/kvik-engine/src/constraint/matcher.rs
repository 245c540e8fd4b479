//! A constraint at work on one text.

use super::compiler::reason;
use crate::sampling::{MaskError, TokenMask};
use llguidance::Matcher;
use std::fmt;

/// Tokens in one word of a set of tokens.
const WORD_TOKENS: usize = u32::BITS as usize;

/// Where a text stands in what it must look like. A clone goes its own way from there and shares nothing.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: usize,
}

impl Constraint {
    /// A constraint at the beginning of its text.
    pub(super) fn new(matcher: Matcher) -> Self {
        let vocabulary = matcher.tok_env().map_or(0, |environment| environment.tok_trie().vocab_size());
        Self { matcher, vocabulary }
    }

    /// Whether the text may end here.
    pub fn may_end(&mut self) -> bool {
        self.matcher.is_stopped() || self.matcher.is_accepting().unwrap_or(false)
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // Deep: a shallow clone shares the automata, whose size is bounded for all clones together.
        Self { matcher: self.matcher.deep_clone(), vocabulary: self.vocabulary }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Constraint").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl TokenMask for Constraint {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), MaskError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        if allowed.is_zero() {
            return Err(MaskError("it is complete, and the model has no token that ends it".into()));
        }
        let (tokens, padding) = logits.split_at_mut(self.vocabulary.min(logits.len()));
        padding.fill(f32::NEG_INFINITY);
        for (logits, &word) in tokens.chunks_mut(WORD_TOKENS).zip(allowed.as_slice()) {
            // Most words are empty while a token is forced, and full inside a string.
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), MaskError> {
        self.matcher.consume_token(token).map_err(failed)
    }

    fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn failed(error: impl fmt::Display) -> MaskError {
    MaskError(reason(&error.to_string()))
}
