//! Text from tokens as they come, for showing an answer while it is being written.

use super::Tokenizer;

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
        Self { held: Vec::new(), keep_special }
    }

    /// The text that is complete with token `id`, with U+FFFD for bytes that can never become UTF-8.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.keep_special || !tokenizer.kind(id).is_special() {
            self.held.extend_from_slice(&tokenizer.token_bytes(id));
        }
        let mut text = String::new();
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
        text
    }

    /// What is left at the end of the answer: U+FFFD if it ended in the middle of a character.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}
