//! Tokenizers with small vocabularies against llama.cpp and against the `tokenizers` library; any text, and any
//! metadata.

use std::collections::BTreeMap;

use kvik_model::{
    Metadata, Tokenizer,
    tokenizer::{EncodeOptions, StreamDecoder, TokenKind},
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Golden {
    bpe: Map<String, Value>,
    sentencepiece: Map<String, Value>,
    /// Text, whether to add special tokens, whether to parse them.
    texts: Vec<(String, bool, bool)>,
    families: BTreeMap<String, Vec<Vec<u32>>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("goldens/tokenizers.json")).unwrap()
}

fn tokenizer(mut vocabulary: Map<String, Value>, key: &str, value: Value) -> Tokenizer {
    vocabulary.insert(format!("tokenizer.ggml.{key}"), value);
    Tokenizer::from_gguf(&Metadata::from_config(vocabulary)).unwrap()
}

/// The byte-level vocabulary of the golden file behind one of the pre-tokenizers.
fn bpe(pre_tokenizer: &str) -> Tokenizer {
    tokenizer(golden().bpe, "pre", json!(pre_tokenizer))
}

#[test]
fn every_family_is_tokenised_as_by_llama_cpp() {
    let golden = golden();
    assert_eq!(golden.families.len(), 26);
    for (family, expected) in &golden.families {
        let tokenizer = match family.strip_prefix("sentencepiece") {
            Some(rest) => {
                tokenizer(golden.sentencepiece.clone(), "add_space_prefix", json!(!rest.is_empty()))
            }
            None => bpe(family),
        };
        for ((text, add_special, parse_special), expected) in golden.texts.iter().zip(expected) {
            let options = EncodeOptions { add_special: *add_special, parse_special: *parse_special };
            assert_eq!(&tokenizer.encode(text, options).unwrap(), expected, "{family}: {text:?}");
        }
    }
}

/// A `tokenizer.json` with the golden file's vocabulary and the cut of Llama 3.
fn hugging_face() -> Tokenizer {
    let vocabulary = golden().bpe;
    let tokens: Vec<&str> = vocabulary["tokenizer.ggml.tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    let kinds = vocabulary["tokenizer.ggml.token_type"].as_array().unwrap();
    let added: Vec<Value> = (0..tokens.len())
        .filter(|&id| kinds[id] != 1)
        .map(|id| {
            json!({"id": id, "content": tokens[id], "special": kinds[id] == 3, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let numbered: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, &token)| (token.to_owned(), json!(id))).collect();
    let cut = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let file = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "ignore_merges": true, "vocab": numbered, "merges": vocabulary["tokenizer.ggml.merges"]},
    });
    let config = json!({"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>"});
    Tokenizer::from_tokenizer_json(file.to_string().as_bytes(), &[config]).unwrap()
}

#[test]
fn tokenizer_json_says_the_same_as_gguf() {
    let (json, gguf) = (hugging_face(), bpe("llama-bpe"));
    for (text, _, parse_special) in golden().texts {
        let options = EncodeOptions { add_special: false, parse_special };
        let (from_json, from_gguf) =
            (json.encode(&text, options).unwrap(), gguf.encode(&text, options).unwrap());
        assert_eq!(from_json, from_gguf, "{text:?}");
        assert_eq!(json.decode(&from_json, true), gguf.decode(&from_gguf, true));
    }
    assert_eq!(json.bos(), gguf.bos());
    assert_eq!(json.eos(), gguf.eos());
    assert_eq!(json.end_of_generation(), gguf.end_of_generation());
    assert!(!json.adds_bos() && json.vocab_len() == gguf.vocab_len());
}

#[test]
fn control_tokens_are_recognised_on_request_and_hidden_unless_kept() {
    let tokenizer = bpe("smollm");
    let start = tokenizer.token_id("<|im_start|>").unwrap();
    assert_eq!(tokenizer.kind(start), TokenKind::Control);
    let text = "<|im_start|>user";
    let literal = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    let parsed = tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: true }).unwrap();
    assert!(!literal.contains(&start) && parsed[0] == start);
    assert_eq!(tokenizer.decode(&literal, false), text);
    assert_eq!(tokenizer.decode(&parsed, true), text);
    assert_eq!(tokenizer.decode(&parsed, false), "user");
    // A user-defined token is text: always recognised, always shown.
    let table = tokenizer.token_id("<table>").unwrap();
    assert_eq!(tokenizer.encode("<table>", EncodeOptions::default()).unwrap(), [table]);
    assert_eq!(tokenizer.decode(&[table], false), "<table>");
}

#[test]
fn generation_ends_at_the_tokens_of_that_name_and_at_eos() {
    let tokenizer = bpe("smollm");
    let ends = ["<|endoftext|>", "<|im_end|>"].map(|name| tokenizer.token_id(name).unwrap());
    assert_eq!(tokenizer.end_of_generation(), ends);
    assert_eq!(tokenizer.eot(), Some(ends[1]));
    assert!(!tokenizer.is_end_of_generation(0) && !tokenizer.is_end_of_generation(u32::MAX));
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let refusal = |key: &str, value: &str| {
        let mut vocabulary = golden().bpe;
        vocabulary.insert(format!("tokenizer.ggml.{key}"), json!(value));
        Tokenizer::from_gguf(&Metadata::from_config(vocabulary)).err().unwrap().to_string()
    };
    assert!(
        refusal("pre", "martian")
            .starts_with("the model's pre-tokenizer is \"martian\", which Kvik does not know")
    );
    assert!(refusal("model", "rwkv").starts_with("the model's tokenizer is of the kind \"rwkv\""));
}

#[test]
fn a_tokenizer_json_that_contradicts_itself_is_refused() {
    let refusal =
        |json: &str| Tokenizer::from_tokenizer_json(json.as_bytes(), &[]).err().unwrap().to_string();
    let file = |decoder: &str, processor: &str, id: u32| {
        format!(
            r#"{{"version":"1.0","decoder":{decoder},"post_processor":{processor},
                "model":{{"type":"BPE","vocab":{{"a":{id}}},"merges":[]}}}}"#
        )
    };
    assert!(Tokenizer::from_tokenizer_json(file("null", "null", 0).as_bytes(), &[]).is_ok());
    assert!(refusal("{").starts_with("tokenizer.json is not valid: EOF while parsing"));
    // The library panics at the next two, which a fuzzer found.
    assert!(refusal(&file("{\"type\":\"\n\"}", "null", 0)).contains("control character"));
    let template = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}}],
                       "pair":[],"special_tokens":{}}"#;
    assert!(refusal(&file("null", template, 0)).contains("names the special token \"<s>\""));
    // A number that would ask for gigabytes.
    assert!(refusal(&file("null", "null", 4_000_000_000)).contains("4000000000"));
}

proptest! {
    #[test]
    fn byte_level_decoding_undoes_encoding(text: String, family in 0usize..24) {
        let golden = golden();
        let family = golden.families.keys().filter(|name| !name.contains("piece")).nth(family).unwrap();
        let tokenizer = bpe(family);
        let ids = tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true }).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true), text);
    }

    #[test]
    fn sentence_piece_decoding_undoes_encoding(text: String, prefix: bool) {
        // A "▁" in the text reads as a space afterwards; that is the format's.
        prop_assume!(!text.contains('▁'));
        let tokenizer = tokenizer(golden().sentencepiece, "add_space_prefix", json!(prefix));
        let ids = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special: false }).unwrap();
        let user_defined = ids.iter().any(|&id| tokenizer.kind(id) == TokenKind::UserDefined);
        if !user_defined {
            prop_assert_eq!(tokenizer.decode(&ids, false), text);
        }
    }

    #[test]
    fn a_stream_says_what_decoding_at_once_says(ids in prop::collection::vec(0u32..800, 0..40), keep: bool) {
        let tokenizer = bpe("gpt-2");
        let mut stream = StreamDecoder::new(keep);
        let mut text = String::new();
        for &id in &ids {
            stream.push(&tokenizer, id, &mut text);
        }
        stream.finish(&mut text);
        prop_assert_eq!(text, tokenizer.decode(&ids, keep));
    }
}

/// Texts as a damaged or hostile file might hold them.
fn any_token() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab Ġ▁<>|]{0,4}",
        "<0x[0-9A-F]{0,3}>?",
        Just("<|im_end|>".to_owned()),
        Just(String::new()),
        any::<String>(),
    ]
}

fn any_metadata() -> impl Strategy<Value = Map<String, Value>> {
    let id = || prop_oneof![0u64..6, Just(u64::MAX), Just(u64::from(u32::MAX))];
    let lists = (
        prop::collection::vec(any_token(), 0..12),
        prop::collection::vec(-2i32..9, 0..14),
        prop::collection::vec(prop_oneof![Just(0.0f32), -3.0f32..3.0, Just(1e30)], 0..14),
        prop::collection::vec(any_token(), 0..12),
    );
    let choices = (prop::bool::ANY, 0usize..3, prop::array::uniform3(id()), any::<[bool; 6]>());
    (lists, choices).prop_map(
        |((tokens, kinds, scores, merges), (is_bpe, pre, [bos, eos, unknown], present))| {
            let mut map = Map::new();
            let mut set = |key: &str, value: Value| map.insert(format!("tokenizer.ggml.{key}"), value);
            set("model", json!(if is_bpe { "gpt2" } else { "llama" }));
            set("pre", json!(["default", "llama-bpe", "deepseek-llm"][pre]));
            set("tokens", json!(tokens));
            set("merges", json!(merges));
            set("bos_token_id", json!(bos));
            set("eos_token_id", json!(eos));
            set("unknown_token_id", json!(unknown));
            if present[0] {
                set("token_type", json!(kinds));
            }
            if present[1] {
                set("scores", json!(scores));
            }
            set("add_bos_token", json!(present[2]));
            set("add_eos_token", json!(present[3]));
            set("add_space_prefix", json!(present[4]));
            if present[5] {
                map.insert("general.name".to_owned(), json!("Phi-3"));
            }
            map
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_metadata_and_no_text_make_it_panic(
        metadata in any_metadata(),
        text in "([ab ▁<>|\\n]|Ġ|<0x0A>|<\\|im_end\\|>|é){0,20}",
        add_special: bool,
        parse_special: bool,
    ) {
        match Tokenizer::from_gguf(&Metadata::from_config(metadata)) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode(&text, EncodeOptions { add_special, parse_special }).unwrap();
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_len()));
                tokenizer.decode(&ids, true);
            }
            Err(error) => prop_assert!(error.to_string().len() < 2000),
        }
    }
}
