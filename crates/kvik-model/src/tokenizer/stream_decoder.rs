//! Text from tokens as they come, for showing an answer while it is being written.

use super::Tokenizer;

/// Room for the bytes of a token; the longest in use, runs of spaces, have about a hundred.
const LONGEST_TOKEN_BYTES: usize = 256;

/// Turns one token after the other into text and never emits half a character: a token may end in the middle of one,
/// whose bytes are then held back until the rest has come.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// Bytes of a character that is not complete yet; at most three.
    held: Vec<u8>,
    keep_special: bool,
}

impl StreamDecoder {
    /// A decoder for tokens that continue a text. Control tokens are written out if `keep_special`.
    pub fn new(keep_special: bool) -> Self {
        Self { held: Vec::with_capacity(LONGEST_TOKEN_BYTES), keep_special }
    }

    /// Appends to `text` what is complete with token `id`, with U+FFFD for bytes that can never become UTF-8. Allocates
    /// only to make room there.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        if self.keep_special || !tokenizer.kind(id).is_special() {
            tokenizer.append_token_bytes(id, &mut self.held);
        }
        let mut rest = &self.held[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(broken) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[broken..];
                }
            }
        }
        self.held.drain(..self.held.len() - rest.len());
    }

    /// Appends to `text` what is left at the end of the answer: U+FFFD if it ended in the middle of a character.
    pub fn finish(self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.held));
    }
}
