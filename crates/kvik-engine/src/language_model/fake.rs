//! A model whose distribution is a closed formula, and a tokenizer of bytes: the oracle of the loops' tests.

use super::{KvBytes, LanguageModel};
use crate::error::EngineError;
use kvik_model::{
    Tokenizer,
    layers::{Logits, Phase, Rows},
};

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
}

impl Default for Bigram {
    fn default() -> Self {
        Self {
            cached: Vec::new(),
            computed: 0,
            longest_forward: 0,
            not_a_number_from: usize::MAX,
            window: usize::MAX,
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

    fn forward(&mut self, tokens: &[u32], wanted: Logits, _phase: Phase) -> Result<Rows, EngineError> {
        let asked = match wanted {
            Logits::None | Logits::Hidden => &[],
            Logits::Last => &tokens[tokens.len() - 1..],
            Logits::All => tokens,
        };
        let first = self.cached.len() + tokens.len() - asked.len();
        let mut logits = Rows::new(asked.len(), Self::VOCAB_SIZE);
        for (index, logit) in logits.iter_mut().enumerate() {
            let (row, id) = (index / Self::VOCAB_SIZE, index % Self::VOCAB_SIZE);
            let broken = first + row >= self.not_a_number_from;
            *logit = if broken { f32::NAN } else { Self::logit(asked[row], id as u32) };
        }
        self.cached.extend_from_slice(tokens);
        self.computed += tokens.len();
        self.longest_forward = self.longest_forward.max(tokens.len());
        Ok(logits)
    }

    fn end_of_prompt(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn truncate(&mut self, tokens: usize) -> usize {
        let forgets_all = tokens < self.cached.len() && self.cached.len() - tokens > self.window;
        self.cached.truncate(if forgets_all { 0 } else { tokens });
        self.cached.len()
    }

    fn kv_bytes(&self) -> KvBytes {
        KvBytes {
            in_use: self.cached.len() * Self::KV_BYTES,
            in_files: 0,
            uncompressed_bf16: self.cached.len() * 20,
        }
    }
}

/// A tokenizer whose 256 tokens are the bytes.
pub(crate) fn byte_tokenizer(bos: Option<u32>, eos: Option<u32>) -> Tokenizer {
    byte_tokenizer_with(&[], &[], &serde_json::json!({"bos_token_id": bos, "eos_token_id": eos}))
}

/// A tokenizer whose tokens are the bytes, then `pieces` of several bytes, then control tokens named `marks`.
pub(crate) fn byte_tokenizer_with(pieces: &[&[u8]], marks: &[&str], roles: &serde_json::Value) -> Tokenizer {
    // GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100 on.
    let printable = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = 0x100..;
    let alphabet: Vec<char> = (0..256)
        .map(|byte| char::from_u32(if printable(&byte) { byte } else { others.next().unwrap() }).unwrap())
        .collect();
    let spelled = |bytes: &[u8]| bytes.iter().map(|&byte| alphabet[usize::from(byte)]).collect::<String>();
    let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
    let words = bytes.iter().map(|byte| &byte[..]).chain(pieces.iter().copied());
    let vocab: serde_json::Map<_, _> =
        words.map(spelled).zip(0u32..).map(|(word, id)| (word, id.into())).collect();
    let mark = |(id, mark): (usize, &&str)| {
        serde_json::json!({"id": vocab.len() + id, "content": mark, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": true})
    };
    let added: Vec<_> = marks.iter().enumerate().map(mark).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": []}
    });
    Tokenizer::from_tokenizer_json(json.to_string().as_bytes(), std::slice::from_ref(roles)).unwrap()
}
