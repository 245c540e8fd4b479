//! Pre-tokenizers: how a text is cut into words before byte-pair encoding merges inside each.
//!
//! Every family of models was trained behind its own cut, and a GGUF file only names it (`tokenizer.ggml.pre`). A cut
//! is a list of patterns, applied one after the other: each cuts every piece that the ones before it left into its
//! matches and what lies between them. Which name means which patterns is the table in [`families`].
//!
//! Patterns that speak of classes run on the collapsed text (see [`char_class`](super::char_class)), where a letter outside ASCII counts
//! as upper and lower case at once, as in llama.cpp. The few that list characters outside ASCII run on the text itself.
//! Only one look-ahead occurs, `\s+(?!\S)`: white space before a word leaves its last character to the word. It is
//! done by hand, so that the regular expressions stay linear in the length of the text.

mod families;

use std::ops::Range;

use families::FAMILIES;

use super::char_class::{LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, collapse};

/// Cuts texts into words.
pub(super) struct PreTokenizer {
    cuts: Vec<Cut>,
    /// A word that is a token becomes that token, whatever the merges say.
    pub(super) whole_words_first: bool,
    /// BOS is added where the file does not say.
    pub(super) adds_bos: bool,
}

/// One pattern.
struct Cut {
    matcher: Matcher,
    /// White space leaves its last character to the word behind it.
    leaves_space: bool,
    /// … unless that character is a newline.
    keeps_newline: bool,
}

enum Matcher {
    /// Runs on the collapsed text.
    Classes(regex::bytes::Regex),
    /// Runs on the text itself.
    Characters(regex::Regex),
}

impl PreTokenizer {
    /// The pre-tokenizer that a GGUF file calls `name`, or `None` if there is none of that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let family = FAMILIES.iter().find(|family| family.names.contains(&name))?;
        Some(Self {
            cuts: family.patterns.iter().map(|pattern| Cut::new(pattern)).collect(),
            whole_words_first: family.whole_words_first,
            adds_bos: family.adds_bos,
        })
    }

    /// All names.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().flat_map(|family| family.names).copied()
    }

    /// Calls `word` with each word of `text` in order. The words together are the text.
    pub(super) fn for_each_word<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        let collapsed = collapse(text);
        // Pieces are counted in characters, which are the bytes of the collapsed text.
        let mut pieces = Vec::from([Range { start: 0, end: collapsed.len() }]);
        for cut in &self.cuts {
            let mut finer = Vec::with_capacity(pieces.len());
            match &cut.matcher {
                Matcher::Classes(regex) => {
                    for piece in pieces {
                        cut.cut_classes(regex, &collapsed[piece.clone()], |part| {
                            finer.push(piece.start + part.start..piece.start + part.end);
                        });
                    }
                }
                Matcher::Characters(regex) => {
                    let spaced = with_ascii_space(text);
                    let mut rest = &spaced[..];
                    for piece in pieces {
                        let (this, after) = rest.split_at(byte_len(rest, piece.len()));
                        cut_characters(regex, this, |len| {
                            let start = finer.last().map_or(0, |last: &Range<usize>| last.end);
                            finer.push(start..start + len);
                        });
                        rest = after;
                    }
                }
            }
            pieces = finer;
        }
        let mut rest = text;
        for piece in pieces {
            let (this, after) = if collapsed.len() == text.len() {
                rest.split_at(piece.len())
            } else {
                rest.split_at(byte_len(rest, piece.len()))
            };
            word(this);
            rest = after;
        }
    }
}

/// The text with ASCII white space only: to these patterns, whose ranges span some, other white space is no character
/// of its own.
fn with_ascii_space(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() && !c.is_ascii() { '\u{b}' } else { c }).collect()
}

/// How many bytes the first `chars` characters of `text` take.
fn byte_len(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

/// Calls `part` with the number of characters of each match of `regex` in `text` and of each gap, in order.
fn cut_characters(regex: &regex::Regex, text: &str, mut part: impl FnMut(usize)) {
    let mut done = 0;
    for found in regex.find_iter(text) {
        if done < found.start() {
            part(text[done..found.start()].chars().count());
        }
        part(found.as_str().chars().count());
        done = found.end();
    }
    if done < text.len() {
        part(text[done..].chars().count());
    }
}

impl Cut {
    /// Compiles a published pattern.
    fn new(pattern: &str) -> Self {
        let leaves_space = pattern.contains(r"\s+(?!\S)|");
        let keeps_newline = pattern.contains(r"\s*[\r\n]");
        let pattern = pattern.replace(r"\s+(?!\S)|", "");
        let matcher = if pattern.is_ascii() {
            let mut classes = pattern;
            // A class is its ASCII members and the byte that stands for all others.
            for (class, ascii, byte) in [
                (r"\p{L}", "A-Za-z", LETTER),
                (r"\p{Lu}", "A-Z", LETTER),
                (r"\p{Ll}", "a-z", LETTER),
                (r"\p{N}", "0-9", NUMBER),
                (r"\p{P}", r##"!-#%-*,-/:;?@\[-\]_\{\}"##, PUNCTUATION),
                (r"\p{S}", r"\$\+<=>\^`\|~", SYMBOL),
                (r"\p{M}", "", MARK),
            ] {
                classes = classes.replace(class, &format!(r"{ascii}\x{byte:02X}"));
            }
            let regex = regex::bytes::RegexBuilder::new(&classes).unicode(false).build();
            Matcher::Classes(regex.expect("the patterns are constants and each is tested"))
        } else {
            Matcher::Characters(
                regex::Regex::new(&pattern).expect("the patterns are constants and each is tested"),
            )
        };
        Self { matcher, leaves_space, keeps_newline }
    }

    /// Calls `part` with each match in a collapsed piece and each gap, in order.
    fn cut_classes(&self, regex: &regex::bytes::Regex, piece: &[u8], mut part: impl FnMut(Range<usize>)) {
        let mut done = 0;
        while let Some(found) = regex.find_at(piece, done) {
            if done < found.start() {
                part(done..found.start());
            }
            let mut end = found.end();
            if self.leaves_space && found.len() > 1 && end < piece.len() {
                let run = found.as_bytes();
                let at_newline = self.keeps_newline && matches!(run.last(), Some(b'\r' | b'\n'));
                if !at_newline && run.iter().all(|&byte| matches!(byte, b' ' | b'\t'..=b'\r')) {
                    end -= 1;
                }
            }
            part(found.start()..end);
            done = end;
        }
        if done < piece.len() {
            part(done..piece.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        PreTokenizer::named(name).unwrap().for_each_word(text, |word| words.push(word.to_owned()));
        words
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word_behind_it() {
        assert_eq!(words("gpt-2", "a   b\n\nc  "), ["a", "  ", " b", "\n", "\n", "c", "  "]);
        assert_eq!(words("llama-bpe", "a   b\n\nc  "), ["a", "  ", " b", "\n\n", "c", "  "]);
        assert_eq!(words("qwen2", "x \u{3000}\ty 12"), ["x", " \u{3000}", "\ty", " ", "1", "2"]);
    }

    proptest! {
        #[test]
        fn the_words_are_the_text(text: String, name in prop::sample::select(PreTokenizer::names().collect::<Vec<_>>())) {
            let words = words(name, &text);
            prop_assert!(words.iter().all(|word| !word.is_empty()));
            prop_assert_eq!(words.concat(), text);
        }
    }
}
