//! SentencePiece BPE with byte fallback: the tokenizer of Llama 2, Mistral 7B and Gemma.
//!
//! Spaces are written `▁`; of all neighbouring pairs whose joined text is a token, the one whose token has the highest
//! score is joined first. A character that is no token becomes the tokens of its bytes, `<0xE2>` and so on.
//! (Kudo & Richardson 2018, "SentencePiece".)

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use super::{pair_merger::PairMerger, vocabulary::Vocabulary};

/// How a space is written.
pub(super) const SPACE: char = '▁';

/// The scores of a SentencePiece vocabulary.
pub(super) struct SentencePiece {
    scores: Vec<f32>,
    /// The token of each byte; `None` where the vocabulary has none.
    byte_tokens: Vec<Option<u32>>,
    /// The characters after which some token goes on with a space. Found when first needed.
    before_inner_space: OnceLock<HashSet<char>>,
}

impl SentencePiece {
    /// One score per token of `vocabulary`.
    pub(super) fn new(vocabulary: &Vocabulary, scores: Vec<f32>) -> Self {
        let byte_token = |byte: u8| {
            let itself = || vocabulary.id(byte.is_ascii().then_some(byte as char)?.encode_utf8(&mut [0; 1]));
            vocabulary.id(&format!("<0x{byte:02X}>")).or_else(itself)
        };
        let byte_tokens = (0..=u8::MAX).map(byte_token).collect();
        Self { scores, byte_tokens, before_inner_space: OnceLock::new() }
    }

    /// Appends the tokens of `text`, with a space put before it if `add_space`, to `out`. A byte that has no token
    /// becomes `unknown`, if there is such a token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        add_space: bool,
        unknown: Option<u32>,
        out: &mut Vec<u32>,
    ) {
        let mut spelled = String::with_capacity(2 * text.len());
        spelled.extend(add_space.then_some(SPACE));
        spelled.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        // Words repeat: remember where in `out` a word's tokens already are.
        let mut known = HashMap::new();
        let mut merger = PairMerger::default();
        self.for_each_word(vocabulary, &spelled, |word| {
            if let Some((start, end)) = known.get(word).copied() {
                return out.extend_from_within(start..end);
            }
            let start = out.len();
            let symbols = merger.merge(word, |joined, _| {
                let id = vocabulary.id(joined)?;
                self.scores.get(id as usize).map(|&score| rank(score))
            });
            for symbol in symbols {
                match vocabulary.id(symbol) {
                    Some(id) => out.push(id),
                    None => out.extend(
                        symbol.bytes().filter_map(|byte| self.byte_tokens[byte as usize].or(unknown)),
                    ),
                }
            }
            known.insert(word, (start, out.len()));
        });
    }

    /// Cuts `text` before every space that no token can have inside, and so no merge can cross. The tokens are those
    /// of the whole text; only the time to find them, and the memory, are those of a word.
    fn for_each_word<'t>(&self, vocabulary: &Vocabulary, text: &'t str, mut word: impl FnMut(&'t str)) {
        let before_inner_space = self.before_inner_space.get_or_init(|| {
            (0..vocabulary.len() as u32).flat_map(|id| inner_spaces(vocabulary.text(id))).collect()
        });
        let mut start = 0;
        let mut previous = SPACE;
        for (at, c) in text.char_indices() {
            if c == SPACE && previous != SPACE && !before_inner_space.contains(&previous) {
                word(&text[start..at]);
                start = at;
            }
            previous = c;
        }
        if start < text.len() {
            word(&text[start..]);
        }
    }
}

/// The characters of `token` that a space follows, other than spaces.
fn inner_spaces(token: &str) -> impl Iterator<Item = char> {
    token.match_indices(SPACE).filter_map(|(at, _)| token[..at].chars().next_back()).filter(|&c| c != SPACE)
}

/// The byte that a token of the form `<0xE2>` stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

/// A number that is lower the higher the score.
fn rank(score: f32) -> u32 {
    // The bits of positive floats are in order, those of negative ones in reverse; adding zero makes -0.0 equal 0.0.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7FFF_FFFF }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_order_scores_from_high_to_low(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(a.partial_cmp(&b), Some(rank(b).cmp(&rank(a))));
        }
    }
}
