//! The vocabulary as the library wants it: a trie of the bytes of all tokens.
//!
//! A token of text goes in as its bytes, which need not be whole characters. A control token goes in behind the byte
//! `0xFF`, which no text has: so it never passes for the text that it is named by, and a grammar can ask for it by
//! number, `<[151657]>`. Tokens that end generation are control tokens, whatever the file says of them.

use super::error::ConstraintError;
use kvik_model::{Tokenizer, tokenizer::TokenKind};
use llguidance::toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};
use std::sync::Arc;

/// A node of the trie has 22 bits for the size of what is below it.
const MAX_TRIE_BYTES: usize = 1 << 22;
/// And 10 bits for its depth. Longer tokens, runs of spaces for example, are never allowed.
const MAX_TOKEN_BYTES: usize = 1000;
/// And 24 bits for the token.
const MAX_TOKENS: usize = (1 << 24) - 2;

/// The trie of a tokenizer's tokens.
///
/// # Errors
/// [`ConstraintError::Vocabulary`] if they do not fit into one.
pub(super) fn token_environment(tokenizer: &Tokenizer) -> Result<TokEnv, ConstraintError> {
    let tokens = tokenizer.vocab_len();
    if tokens > MAX_TOKENS {
        return Err(ConstraintError::Vocabulary(format!(
            "it has {tokens} tokens, and at most {MAX_TOKENS} can be handled"
        )));
    }
    let words: Vec<Vec<u8>> = (0..tokens as u32).map(|id| word(tokenizer, id)).collect();
    let bytes: usize = words.iter().map(Vec::len).sum();
    if bytes > MAX_TRIE_BYTES {
        return Err(ConstraintError::Vocabulary(format!(
            "its tokens have {bytes} bytes, and at most {MAX_TRIE_BYTES} can be handled"
        )));
    }
    let ends = tokenizer.end_of_generation();
    let eos = ends.first().copied().unwrap_or(INVALID_TOKEN);
    let trie = TokTrie::from(&TokRxInfo::new(tokens as u32, eos), &words);
    let trie = if ends.is_empty() { trie } else { trie.with_eos_tokens(ends) };
    // The model chooses how to cut what the grammar forces into tokens, as it does everywhere else.
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

/// What a token is in the trie; empty if it is never allowed.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let control = matches!(tokenizer.kind(id), TokenKind::Control | TokenKind::Unknown);
    let mut word = Vec::new();
    if control || tokenizer.is_end_of_generation(id) {
        word.push(TokTrie::SPECIAL_TOKEN_MARKER);
    }
    tokenizer.append_token_bytes(id, &mut word);
    let text = !control && !tokenizer.is_end_of_generation(id);
    // A byte that no text has, as a token: it would pass for the marker.
    if word.len() > MAX_TOKEN_BYTES || (text && word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER)) {
        word.clear();
    }
    word
}
