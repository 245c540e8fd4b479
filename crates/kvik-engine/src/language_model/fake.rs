//! A model whose distribution is a closed formula, and a vocabulary of bytes: the oracle of the loops' tests.

use super::{KvBytes, LanguageModel, LogitRows, TextDecoder, Vocabulary};
use crate::error::EngineError;

/// A bigram model over bytes: the logits depend on the token before, and it remembers what it was asked to compute.
#[derive(Debug)]
pub(crate) struct Bigram {
    /// The tokens in its cache.
    pub(crate) cached: Vec<u32>,
    /// Tokens that were computed, prefill and decode.
    pub(crate) computed: usize,
    /// The most tokens that came in one call.
    pub(crate) longest_forward: usize,
    /// Cached tokens from which on the logits are broken.
    pub(crate) not_a_number_from: usize,
    /// Tokens that it can go back.
    pub(crate) window: usize,
    pub(crate) logits: Vec<f32>,
}

impl Default for Bigram {
    fn default() -> Self {
        Self {
            cached: Vec::new(),
            computed: 0,
            longest_forward: 0,
            not_a_number_from: usize::MAX,
            window: usize::MAX,
            logits: Vec::new(),
        }
    }
}

impl Bigram {
    pub(crate) const VOCAB_SIZE: usize = 256;
    /// Bytes of its "cache" per token.
    pub(crate) const KV_BYTES: usize = 10;

    fn logit(before: u32, id: u32) -> f32 {
        // The residues of a linear map modulo a prime: all different for one `before`.
        ((before * 71 + id * 37 + 11) % 257) as f32 / 16.0
    }

    pub(crate) fn log_probability(before: u32, id: u32) -> f64 {
        let weights = (0..Self::VOCAB_SIZE as u32).map(|id| f64::from(Self::logit(before, id)).exp());
        f64::from(Self::logit(before, id)) - weights.sum::<f64>().ln()
    }

    pub(crate) fn most_likely_after(before: u32) -> u32 {
        let ids = 0..Self::VOCAB_SIZE as u32;
        ids.max_by(|&a, &b| Self::logit(before, a).total_cmp(&Self::logit(before, b))).unwrap()
    }

    /// The first `count` tokens that greedy decoding gives after `prompt`.
    pub(crate) fn greedy(prompt: &[u32], count: usize) -> Vec<u32> {
        let next = |&before: &u32| Some(Self::most_likely_after(before));
        std::iter::successors(prompt.last().copied(), next).skip(1).take(count).collect()
    }
}

impl LanguageModel for Bigram {
    fn vocab_size(&self) -> usize {
        Self::VOCAB_SIZE
    }

    fn forward(&mut self, tokens: &[u32], rows: LogitRows) -> Result<&[f32], EngineError> {
        let asked = match rows {
            LogitRows::None => &[],
            LogitRows::Last => &tokens[tokens.len() - 1..],
            LogitRows::All => tokens,
        };
        let first = self.cached.len() + tokens.len() - asked.len();
        self.logits.clear();
        for (row, &before) in asked.iter().enumerate() {
            let broken = first + row >= self.not_a_number_from;
            let logit = |id| if broken { f32::NAN } else { Self::logit(before, id) };
            self.logits.extend((0..Self::VOCAB_SIZE as u32).map(logit));
        }
        self.cached.extend_from_slice(tokens);
        self.computed += tokens.len();
        self.longest_forward = self.longest_forward.max(tokens.len());
        Ok(&self.logits)
    }

    fn truncate(&mut self, tokens: usize) -> usize {
        let forgets_all = tokens < self.cached.len() && self.cached.len() - tokens > self.window;
        self.cached.truncate(if forgets_all { 0 } else { tokens });
        self.cached.len()
    }

    fn kv_bytes(&self) -> KvBytes {
        KvBytes { in_use: self.cached.len() * Self::KV_BYTES, uncompressed_bf16: self.cached.len() * 20 }
    }
}

/// Every byte is a token; text is UTF-8.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    pub(crate) end_of_text: Option<u32>,
    pub(crate) beginning_of_text: Option<u32>,
}

impl Vocabulary for Bytes {
    fn is_end_of_text(&self, id: u32) -> bool {
        self.end_of_text == Some(id)
    }

    fn beginning_of_text(&self) -> Option<u32> {
        self.beginning_of_text
    }

    fn decoder(&self) -> Box<dyn TextDecoder + '_> {
        Box::new(ByteDecoder::default())
    }
}

/// Holds the bytes of an unfinished character.
#[derive(Default)]
struct ByteDecoder(Vec<u8>);

impl TextDecoder for ByteDecoder {
    fn push(&mut self, id: u32, text: &mut String) {
        self.0.push(id as u8);
        loop {
            match std::str::from_utf8(&self.0) {
                Ok(complete) => text.push_str(complete),
                Err(error) if error.valid_up_to() > 0 => {
                    text.push_str(&String::from_utf8_lossy(&self.0[..error.valid_up_to()]));
                    self.0.drain(..error.valid_up_to());
                    continue;
                }
                Err(error) => {
                    let Some(length) = error.error_len() else { return };
                    text.push('\u{fffd}');
                    self.0.drain(..length);
                    continue;
                }
            }
            return self.0.clear();
        }
    }

    fn finish(&mut self, text: &mut String) {
        if !self.0.is_empty() {
            text.push('\u{fffd}');
        }
    }
}
