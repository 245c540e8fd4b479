//! SQuAD's normalisation of answers and the F1 between their words, which SCBench and LongBench took over.

use std::collections::HashMap;

/// What Python's `string.punctuation` holds.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// `text` in lower case, without punctuation, without the words `a`, `an` and `the`, one space between words.
///
/// Punctuation goes first, as in the official function: `the-cat` is the word `thecat`, and keeps its article.
pub fn normalise(text: &str) -> String {
    let bare: String = text.to_lowercase().chars().filter(|&c| !PUNCTUATION.contains(c)).collect();
    let words = bare.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the"));
    words.collect::<Vec<_>>().join(" ")
}

/// The harmonic mean of precision and recall of the words of `answer` against those of `reference`, both normalised,
/// words counted as often as they stand in both.
pub fn token_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (normalise(answer), normalise(reference));
    let mut open: HashMap<&str, usize> = HashMap::new();
    for word in reference.split_whitespace() {
        *open.entry(word).or_default() += 1;
    }
    let mut common = 0usize;
    for word in answer.split_whitespace() {
        if let Some(left) = open.get_mut(word).filter(|left| **left > 0) {
            *left -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = common as f64 / answer.split_whitespace().count() as f64;
    let recall = common as f64 / reference.split_whitespace().count() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalisation_matches_the_official_function() {
        // Left: input; right: what SCBench's `normalize_answer` gives.
        for (text, expected) in [
            ("The  Quick, brown FOX!", "quick brown fox"),
            ("An apple a day", "apple day"),
            ("the-cat", "thecat"),
            ("theatre another", "theatre another"),
            ("1,234.5", "12345"),
            ("\tA\n", ""),
            ("don't", "dont"),
            ("“quoted”", "“quoted”"),
        ] {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn f1_counts_words_as_often_as_both_have_them() {
        assert_eq!(token_f1("x x x", "x"), 0.5);
        assert_eq!(token_f1("x y", "y x"), 1.0);
        assert_eq!(token_f1("the", "the"), 0.0);
    }
}
