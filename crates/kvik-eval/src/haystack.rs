//! Filler text of an exact number of tokens, with needles between its sentences.
//!
//! Prose is cut into sentences, each tokenised on its own. A haystack takes sentences from a random one on, until it is
//! long enough; the first is cut at its front to make the length exact, so that no needle and no end of a sentence is
//! hurt. Needles go to the boundary of sentences that comes closest to their depth.

use crate::{EvalError, draw::Draw, prompt::Prompter};

/// Sentences that say nothing, as RULER and the pass-key task repeat them.
const NOISE: [&str; 5] = [
    " The grass is green.",
    " The sky is blue.",
    " The sun is yellow.",
    " Here we go.",
    " There and back again.",
];

/// Tokenised sentences to make haystacks of.
pub struct Haystack {
    sentences: Vec<Vec<u32>>,
}

/// A needle: its tokens, and where it goes, from 0 (start) to 1 (end).
#[derive(Clone, Debug)]
pub struct Needle {
    /// What is hidden.
    pub tokens: Vec<u32>,
    /// Where, as a share of the haystack.
    pub depth: f64,
}

impl Haystack {
    /// Sentences of `prose`.
    ///
    /// # Errors
    /// From a tokenizer that cannot express it.
    pub fn of_prose(prompter: &Prompter<'_>, prose: &str) -> Result<Self, EvalError> {
        let sentences = sentences(prose).map(|sentence| prompter.text(&format!(" {sentence}")));
        Ok(Self { sentences: sentences.collect::<Result<_, _>>()? })
    }

    /// Five short sentences, over and over.
    ///
    /// # Errors
    /// From a tokenizer that cannot express them.
    pub fn of_noise(prompter: &Prompter<'_>) -> Result<Self, EvalError> {
        Ok(Self { sentences: NOISE.iter().map(|text| prompter.text(text)).collect::<Result<_, _>>()? })
    }

    /// Exactly `tokens` tokens with the `needles` in them; `None` when the needles alone are longer.
    ///
    /// Text is taken from a place that `draw` chooses, and from the start again after its end.
    pub fn fill(&self, tokens: usize, needles: &[Needle], draw: &mut Draw) -> Option<Vec<u32>> {
        let hidden: usize = needles.iter().map(|needle| needle.tokens.len()).sum();
        let filler = tokens.checked_sub(hidden)?;
        if self.sentences.iter().all(Vec::is_empty) {
            return (filler == 0).then(|| needles.iter().flat_map(|needle| needle.tokens.clone()).collect());
        }
        let first = draw.below(self.sentences.len());
        let mut pieces: Vec<&[u32]> = Vec::new();
        let mut length = 0;
        for sentence in self.sentences.iter().cycle().skip(first) {
            if length >= filler {
                break;
            }
            pieces.push(sentence);
            length += sentence.len();
        }
        if let Some(front) = pieces.first_mut() {
            *front = &front[(length - filler).min(front.len())..];
        }
        // A front sentence that was shorter than the excess cannot be: the last sentence was needed.
        let mut excess = pieces.iter().map(|piece| piece.len()).sum::<usize>().saturating_sub(filler);
        for piece in pieces.iter_mut() {
            let cut = excess.min(piece.len());
            *piece = &piece[cut..];
            excess -= cut;
        }
        let mut ordered: Vec<&Needle> = needles.iter().collect();
        ordered.sort_by(|a, b| a.depth.total_cmp(&b.depth));
        let mut ordered = ordered.into_iter().peekable();
        let mut laid = Vec::with_capacity(tokens);
        let mut read = 0;
        for piece in pieces {
            // The boundary before this piece, or the one after it, whichever is closer.
            let middle = read as f64 + piece.len() as f64 / 2.0;
            while let Some(needle) = ordered.next_if(|needle| needle.depth * filler as f64 <= middle) {
                laid.extend_from_slice(&needle.tokens);
            }
            laid.extend_from_slice(piece);
            read += piece.len();
        }
        ordered.for_each(|needle| laid.extend_from_slice(&needle.tokens));
        Some(laid)
    }
}

/// The sentences of `prose`, each on one line.
fn sentences(prose: &str) -> impl Iterator<Item = String> {
    let paragraphs = prose.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>());
    paragraphs.flat_map(|words| {
        let mut sentences = Vec::new();
        let mut sentence: Vec<&str> = Vec::new();
        for word in words {
            sentence.push(word);
            if word.trim_end_matches(['"', '\'', ')', '”', '’']).ends_with(['.', '!', '?'])
                && sentence.len() > 2
            {
                sentences.push(sentence.join(" "));
                sentence.clear();
            }
        }
        if !sentence.is_empty() {
            sentences.push(sentence.join(" "));
        }
        sentences
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn haystack() -> Haystack {
        // Sentences of different lengths; the token tells the sentence and the place in it.
        Haystack { sentences: (0..7).map(|s| (0..3 + 2 * s).map(|t| 100 * s + t).collect()).collect() }
    }

    proptest! {
        #[test]
        fn a_haystack_has_its_exact_length_and_whole_needles(
            tokens in 20usize..400, depths in proptest::collection::vec(0.0f64..=1.0, 0..4), index in 0u64..50,
        ) {
            let needles: Vec<Needle> =
                depths.iter().map(|&depth| Needle { tokens: vec![9000, 9001, 9002], depth }).collect();
            let laid = haystack().fill(tokens, &needles, &mut Draw::new(1, "hay", index)).unwrap();
            prop_assert_eq!(laid.len(), tokens);
            let whole = laid.windows(3).filter(|w| w == &[9000, 9001, 9002]).count();
            prop_assert_eq!(whole, needles.len());
            // A needle never cuts a sentence: what follows one begins a sentence, but for the cut front.
            for (at, window) in laid.windows(2).enumerate() {
                let at_front = laid[..at].iter().all(|&t| t >= 9000);
                if window[0] == 9002 && window[1] < 9000 && !at_front {
                    prop_assert_eq!(window[1] % 100, 0);
                }
            }
        }
    }

    #[test]
    fn a_needle_lies_near_its_depth() {
        let needle = |depth| [Needle { tokens: vec![9000], depth }];
        for depth in [0.0, 0.25, 0.5, 0.9, 1.0] {
            let laid = haystack().fill(1000, &needle(depth), &mut Draw::new(3, "hay", 0)).unwrap();
            let at = laid.iter().position(|&t| t == 9000).unwrap() as f64 / 999.0;
            // Half of the longest sentence (15 tokens) off at most.
            assert!((at - depth).abs() < 0.009, "{depth}: {at}");
        }
        assert!(haystack().fill(0, &needle(0.5), &mut Draw::new(3, "hay", 0)).is_none());
    }

    #[test]
    fn prose_falls_into_sentences() {
        let prose = "\"Well, Prince,\" he said. It was\nin July. And\n\nNew paragraph!";
        let expected = ["\"Well, Prince,\" he said.", "It was in July.", "And", "New paragraph!"];
        assert_eq!(sentences(prose).collect::<Vec<_>>(), expected);
    }
}
