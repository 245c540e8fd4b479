//! The character classes that pre-tokenizers speak of: letters, numbers, punctuation, marks, symbols, white space.
//!
//! A pre-tokenizer's pattern asks only for classes, never for a particular non-ASCII character. So a text is first
//! *collapsed* to one byte per character: ASCII stays as it is, every other character becomes the byte of its class.
//! The patterns then run on plain bytes, which compiles them in microseconds, keeps Unicode's tables out of them, and
//! pins the version of Unicode in one place. (llama.cpp found this trick for its C++ regexes.)
//!
//! The version matters: a letter that a newer Unicode adds would be glued to its neighbours instead of standing
//! alone. llama.cpp's tables are those of Unicode 15.1, and so are these; characters that are younger count as
//! unassigned.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// A letter outside ASCII.
pub(super) const LETTER: u8 = 0x80;
/// A number outside ASCII.
pub(super) const NUMBER: u8 = 0x81;
/// A punctuation mark outside ASCII.
pub(super) const PUNCTUATION: u8 = 0x82;
/// A combining mark.
pub(super) const MARK: u8 = 0x83;
/// A symbol outside ASCII.
pub(super) const SYMBOL: u8 = 0x84;
/// White space outside ASCII: collapsed to the vertical tab, which the class `\s` contains and no pattern names.
const SPACE: u8 = 0x0B;
/// Everything else outside ASCII: controls, private use, unassigned.
const OTHER: u8 = 0x85;

/// Runs of characters outside ASCII that share a class, sorted: (first, last, byte of the class).
static RUNS: LazyLock<Vec<(char, char, u8)>> = LazyLock::new(|| {
    let classes = [
        (LETTER, r"[\p{L}&&\p{Age:15.1}&&[^\p{White_Space}]&&[^\x00-\x7F]]"),
        (NUMBER, r"[\p{N}&&\p{Age:15.1}&&[^\p{White_Space}]&&[^\x00-\x7F]]"),
        (PUNCTUATION, r"[\p{P}&&\p{Age:15.1}&&[^\p{White_Space}]&&[^\x00-\x7F]]"),
        (MARK, r"[\p{M}&&\p{Age:15.1}&&[^\p{White_Space}]&&[^\x00-\x7F]]"),
        (SYMBOL, r"[\p{S}&&\p{Age:15.1}&&[^\p{White_Space}]&&[^\x00-\x7F]]"),
        (SPACE, r"[\p{White_Space}&&[^\x00-\x7F]]"),
    ];
    let mut runs = Vec::new();
    for (byte, class) in classes {
        let hir = regex_syntax::parse(class).expect("the class is a constant and its syntax is tested");
        if let HirKind::Class(Class::Unicode(class)) = hir.kind() {
            runs.extend(class.iter().map(|range| (range.start(), range.end(), byte)));
        }
    }
    runs.sort_unstable();
    runs
});

/// The byte that stands for `c` in a collapsed text: `c` itself if it is ASCII, else its class.
fn collapse_char(c: char) -> u8 {
    if c.is_ascii() {
        return c as u8;
    }
    let after = RUNS.partition_point(|&(first, _, _)| first <= c);
    match after.checked_sub(1).map(|i| RUNS[i]) {
        Some((_, last, byte)) if c <= last => byte,
        _ => OTHER,
    }
}

/// The text with one byte per character, as the patterns of a pre-tokenizer see it.
pub(super) fn collapse(text: &str) -> Vec<u8> {
    if text.is_ascii() { text.as_bytes().to_vec() } else { text.chars().map(collapse_char).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_general_category() {
        // One character of each class from the Unicode charts; U+0085 is a control and white space at once.
        let examples = [
            ('é', LETTER),
            ('中', LETTER),
            ('ª', LETTER),
            ('ʰ', LETTER),
            ('𐐀', LETTER),
            ('٣', NUMBER),
            ('Ⅷ', NUMBER),
            ('½', NUMBER),
            ('\u{0301}', MARK),
            ('\u{20DD}', MARK),
            ('—', PUNCTUATION),
            ('。', PUNCTUATION),
            ('€', SYMBOL),
            ('😀', SYMBOL),
            ('\u{0085}', SPACE),
            ('\u{3000}', SPACE),
            ('\u{200B}', OTHER),
            ('\u{E000}', OTHER),
            ('\u{0378}', OTHER),
            ('a', b'a'),
        ];
        for (c, byte) in examples {
            assert_eq!(collapse_char(c), byte, "U+{:04X}", c as u32);
        }
    }

    #[test]
    fn letters_younger_than_unicode_15_1_count_as_unassigned() {
        assert_eq!(collapse_char('\u{2EBF0}'), LETTER, "CJK extension I came with 15.1");
        assert_eq!(collapse_char('\u{13460}'), OTHER, "extended hieroglyphs came with 16.0");
        assert_eq!(collapse_char('\u{1C89}'), OTHER, "CYRILLIC CAPITAL LETTER TJE came with 16.0");
    }
}
