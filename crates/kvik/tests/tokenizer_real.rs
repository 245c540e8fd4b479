//! The two real vocabularies against llama.cpp: special tokens, emoji, all planes of Unicode, whole texts.

use std::{collections::BTreeMap, fs, path::Path};

use kvik_model::{ChatTemplate, Checkpoint, Message, Tokenizer, tokenizer::EncodeOptions};
use serde::Deserialize;
use serde_json::Map;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    files: BTreeMap<String, File>,
    /// Text, whether to add special tokens, whether to parse them, tokens.
    cases: Vec<(String, bool, bool, Vec<u32>)>,
}

#[derive(Deserialize)]
struct File {
    tokens: usize,
    /// Of the tokens as little-endian 32-bit numbers.
    sha256: String,
}

fn open(model: &str) -> (Checkpoint, Tokenizer) {
    let checkpoint = Checkpoint::open(&kvik::pull::ensure(model).unwrap()).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
    (checkpoint, tokenizer)
}

fn check(tokenizer: &Tokenizer, golden: &str) {
    let golden: Golden = serde_json::from_str(golden).unwrap();
    for (text, add_special, parse_special, expected) in &golden.cases {
        let options = EncodeOptions { add_special: *add_special, parse_special: *parse_special };
        assert_eq!(&tokenizer.encode(text, options).unwrap(), expected, "{text:?} with {options:?}");
    }
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/text");
    for (name, expected) in &golden.files {
        let text = fs::read_to_string(texts.join(name)).unwrap();
        let ids = tokenizer.encode(&text, EncodeOptions::default()).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((ids.len(), &digest), (expected.tokens, &expected.sha256), "{name}");
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}

#[test]
fn smollm2() {
    let (checkpoint, tokenizer) = open("smollm2");
    check(&tokenizer, include_str!("goldens/tokenizer_smollm2.json"));
    // <|endoftext|>, <|im_end|> and, as its name is the mark of a repository's end elsewhere, <reponame>.
    assert_eq!(tokenizer.end_of_generation(), [0, 2, 4]);
    assert!(!tokenizer.adds_bos());

    let template = ChatTemplate::from_checkpoint(&checkpoint).unwrap().unwrap();
    let messages = [Message::new("user", "Hi <|im_end|>")];
    assert_eq!(
        template.render(&messages, true, &Map::new()).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = template.encode(&tokenizer, &messages, true).unwrap();
    assert_eq!(ids[..3], [1, 9690, 198], "<|im_start|>, system, newline");
    assert_eq!(ids[ids.len() - 4..], [1, 520, 9531, 198], "<|im_start|>, ass, istant, newline");
}

#[test]
fn gemma3() {
    let (checkpoint, tokenizer) = open("gemma3-270m");
    check(&tokenizer, include_str!("goldens/tokenizer_gemma3-270m.json"));
    assert_eq!(tokenizer.end_of_generation(), [1, 106, 212], "<eos>, <end_of_turn>, </s>");
    assert_eq!(tokenizer.encode("", EncodeOptions { add_special: true, parse_special: false }).unwrap(), [2]);
    assert!(ChatTemplate::from_checkpoint(&checkpoint).unwrap().is_none());
}
