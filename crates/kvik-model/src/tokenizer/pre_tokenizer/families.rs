//! The families of pre-tokenizers: which names in GGUF files mean which patterns.
//!
//! The patterns are those of the models' published `tokenizer.json` files, in the form that llama.cpp runs for the same
//! name. In them `\p{Lu}` and `\p{Ll}` are the upper and lower case of ASCII, with all letters outside it in both.

/// A family of pre-tokenizers that are cut alike.
pub(super) struct Family {
    /// What `tokenizer.ggml.pre` calls them.
    pub(super) names: &'static [&'static str],
    /// The cuts.
    pub(super) patterns: &'static [&'static str],
    /// A word that is a token becomes that token, whatever the merges say.
    pub(super) whole_words_first: bool,
    /// BOS is added where the file does not say.
    pub(super) adds_bos: bool,
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
pub(super) const FAMILIES: &[Family] = &[
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
