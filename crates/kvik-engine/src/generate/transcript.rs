//! The text of a completion: tokens become characters, and what may begin a stop string waits.

use super::StopReason;
use crate::stop::StopStrings;
use kvik_model::{Tokenizer, tokenizer::StreamDecoder};

/// Room that is made per token: longer than the mean token of any language, so that the text does not grow while
/// decoding.
const TEXT_BYTES_PER_TOKEN: usize = 16;
/// Room for the text of one token; the longest in use (runs of spaces) have about 100 bytes.
const PIECE_BYTES: usize = 256;

/// Text so far, and how much of it the caller has seen.
pub(super) struct Transcript {
    decoder: StreamDecoder,
    stops: StopStrings,
    /// The characters that the last token completed.
    piece: String,
    text: String,
    shown: usize,
}

impl Transcript {
    /// An empty text of at most `tokens` tokens.
    pub(super) fn new(stops: StopStrings, tokens: usize) -> Self {
        let decoder = StreamDecoder::new(false);
        let piece = String::with_capacity(PIECE_BYTES);
        let text = String::with_capacity(tokens.saturating_mul(TEXT_BYTES_PER_TOKEN));
        Self { decoder, stops, piece, text, shown: 0 }
    }

    /// Adds the text of a token; returns the stop string that it completes, if one.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Option<&str> {
        self.piece.clear();
        self.decoder.push(tokenizer, id, &mut self.piece);
        self.stops.push(&self.piece, &mut self.text)
    }

    /// Ends the text for `reason`: adds what was waiting, unless a stop string ended it. An unfinished character
    /// becomes a replacement character, and that may complete a stop string, which is then the reason.
    pub(super) fn finish(&mut self, reason: StopReason) -> StopReason {
        if matches!(reason, StopReason::StopString(_)) {
            return reason;
        }
        self.piece.clear();
        std::mem::take(&mut self.decoder).finish(&mut self.piece);
        if let Some(stop) = self.stops.push(&self.piece, &mut self.text) {
            return StopReason::StopString(stop.to_owned());
        }
        self.stops.finish(&mut self.text);
        reason
    }

    /// The text that was added since the last call.
    pub(super) fn fresh(&mut self) -> &str {
        let from = std::mem::replace(&mut self.shown, self.text.len());
        &self.text[from..]
    }

    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}
