//! Byte-level BPE: GPT-2's tokenizer and those of its many descendants.
//!
//! A pre-tokenizer cuts the text into words, a word's bytes are spelled in the byte-level alphabet, and the spelled
//! characters are merged by rank: the merge that training found first goes first.
//! (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; Radford et al. 2019.)

use std::collections::HashMap;

use super::{
    byte_level,
    pair_merger::PairMerger,
    pre_tokenizer::PreTokenizer,
    string_table::{Duplicates, StringTable},
    vocabulary::Vocabulary,
};

/// The merges of a byte-level BPE vocabulary and the cut that goes with them.
pub(super) struct Bpe {
    pre_tokenizer: PreTokenizer,
    /// The merges as the file writes them, `left right`, numbered by rank.
    merges: StringTable,
}

impl Bpe {
    /// `merges` come in the order of their rank. `None` if there are 2³² of them or more.
    pub(super) fn new(pre_tokenizer: PreTokenizer, merges: &[&str]) -> Option<Self> {
        let merges = StringTable::new(merges.iter().map(|merge| merge.as_bytes()), Duplicates::First)?;
        Some(Self { pre_tokenizer, merges })
    }

    /// Appends the tokens of `text` to `out`.
    pub(super) fn encode(&self, vocabulary: &Vocabulary, text: &str, out: &mut Vec<u32>) {
        // Words repeat: remember where in `out` a word's tokens already are.
        let mut known = HashMap::new();
        let mut merger = PairMerger::default();
        let (mut spelled, mut pair) = (String::new(), Vec::new());
        self.pre_tokenizer.for_each_word(text, |word| {
            if let Some((start, end)) = known.get(word).copied() {
                return out.extend_from_within(start..end);
            }
            let start = out.len();
            spelled.clear();
            byte_level::spell(word.as_bytes(), &mut spelled);
            match vocabulary.id(&spelled).filter(|_| self.pre_tokenizer.whole_words_first) {
                Some(id) => out.push(id),
                None => {
                    let symbols = merger.merge(&spelled, |joined, middle| {
                        pair.clear();
                        pair.extend_from_slice(joined.as_bytes());
                        pair.insert(middle, b' ');
                        self.merges.get(&pair)
                    });
                    symbols.for_each(|symbol| push_symbol(vocabulary, symbol, out));
                }
            }
            known.insert(word, (start, out.len()));
        });
    }
}

/// Appends the token of a merged symbol. A vocabulary without it, which no trainer makes, gets the symbol's characters
/// as far as they are ASCII, as from llama.cpp.
fn push_symbol(vocabulary: &Vocabulary, symbol: &str, out: &mut Vec<u32>) {
    match vocabulary.id(symbol) {
        Some(id) => out.push(id),
        None => {
            let characters = symbol.char_indices().filter(|(_, c)| c.is_ascii());
            out.extend(characters.filter_map(|(at, _)| vocabulary.id(&symbol[at..at + 1])));
        }
    }
}
