//! Pre-tokenizers: how a text is cut into words before byte-pair encoding merges inside each.
//!
//! Every family of models was trained behind its own cut, and a GGUF file only names it (`tokenizer.ggml.pre`). A cut
//! is a list of patterns, applied one after the other: each cuts every piece that the ones before it left into its
//! matches and what lies between them. The patterns are those of the models' published `tokenizer.json` files, in the
//! form that llama.cpp runs for the same name, because that is the form in which GGUF files are used.
//!
//! Patterns that speak of classes run on the collapsed text (see [`char_class`]), where a letter outside ASCII counts
//! as upper and lower case at once, as in llama.cpp. The few that list characters outside ASCII run on the text itself.
//! Only one look-ahead occurs, `\s+(?!\S)`: white space before a word leaves its last character to the word. It is
//! done by hand, so that the regular expressions stay linear in the length of the text.

use std::ops::Range;

use super::char_class::{LETTER, MARK, NUMBER, PUNCTUATION, SYMBOL, collapse};

/// A family of pre-tokenizers that are cut alike.
struct Family {
    /// What `tokenizer.ggml.pre` calls them.
    names: &'static [&'static str],
    /// The cuts.
    patterns: &'static [&'static str],
    /// A word that is a token becomes that token, whatever the merges say.
    whole_words_first: bool,
    /// BOS is added where the file does not say.
    adds_bos: bool,
}

/// The cut of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// English endings behind an apostrophe, in either case.
macro_rules! endings {
    () => {
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    };
}

/// The cut of GPT-4 and Llama 3, with `$digits` for numbers: words take one leading character that is no digit.
macro_rules! gpt4 {
    ($digits:literal) => {
        concat!(
            endings!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}]+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// The cut of GPT-4o: words also end where lower case is followed by upper case. `$mark` adds combining marks to the
/// letters, `$ending` may follow a word.
macro_rules! gpt4o {
    ($mark:literal, $ending:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}",
            $mark,
            r"]*[\p{Ll}",
            $mark,
            r"]+",
            $ending,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}",
            $mark,
            r"]+[\p{Ll}",
            $mark,
            r"]*",
            $ending,
            r"|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// The last of DeepSeek V3's three cuts.
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Letters of alphabets with two cases, for DeepSeek's first models.
const DEEPSEEK_CASED: &str = concat!(
    r"\s?[A-Za-z",
    r"µ\x{C0}-\x{D6}Ø-\x{F6}ø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿ\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-Ⴥ",
    r"Ꭰ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}",
    r"\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}",
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}ℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯ",
    r"ꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}",
    r"\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}",
    r"]+"
);

/// All families, the common ones first.
const FAMILIES: &[Family] = &[
    Family {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[r"[\p{N}]", GPT2],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[gpt4!(r"[\p{N}]{1,3}")],
        whole_words_first: true,
        adds_bos: true,
    },
    Family {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        patterns: &[gpt4!(r"[\p{N}]")],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &[
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ],
        patterns: &[GPT2],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"[\p{N}]+", "[0-9][0-9][0-9]"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[gpt4!(r"[\p{N}]{1,3}")],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["glm4", "glm5"],
        patterns: &[gpt4!(r"[\p{N}]{1,3}")],
        whole_words_first: true,
        adds_bos: false,
    },
    Family {
        names: &["tekken"],
        patterns: &[gpt4o!("", "", r"[\p{N}]")],
        whole_words_first: true,
        adds_bos: true,
    },
    Family {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[gpt4o!("", concat!("(?:", endings!(), ")?"), r"[\p{N}]{1,3}")],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["granite-embed-multi-97m"],
        patterns: &[gpt4o!(r"\p{M}", concat!("(?:", endings!(), ")?"), r"[\p{N}]{1,3}")],
        whole_words_first: true,
        adds_bos: false,
    },
    Family {
        names: &["qwen35"],
        patterns: &[concat!(
            endings!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|[\p{N}]| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        patterns: &[r"[\p{N}]{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            DEEPSEEK_CASED,
            "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-\u{D7FF}]+",
            r"[\p{N}]+",
        ],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", "[一-龥ࠀ-一가-\u{D7FF}]+", r"[\p{N}]"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["bloom", "gpt3-finnish", "poro-chat"],
        patterns: &[" ?[^(\\s|.,!?…。，、।۔،)]+"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["viking"],
        patterns: &[" ?[^(\\s|.,!?…。，、।۔،)]+", r"[\p{N}]"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[concat!(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]|",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["exaone-moe"],
        patterns: &[concat!(
            endings!(),
            r"|[^\r\n\p{L}\p{N}]?(?:[\p{L}][\p{M}]*(?: [\p{L}][\p{M}]*)*)+|[\p{N}]|",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["seed-coder"],
        patterns: &[concat!(
            endings!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["ufakzeka"],
        patterns: &[r"[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["minicpm5"],
        patterns: &[r"[\p{N}]{1,3}", gpt4!(r"[\p{N}]+")],
        whole_words_first: true,
        adds_bos: false,
    },
    Family {
        names: &["laguna"],
        patterns: &[r"[^\n]+|[\n]+", gpt4!(r"[\p{N}]")],
        whole_words_first: false,
        adds_bos: false,
    },
    Family {
        names: &["youtu"],
        patterns: &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:",
                endings!(),
                r")?|[\p{N}]| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        whole_words_first: true,
        adds_bos: false,
    },
];

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
