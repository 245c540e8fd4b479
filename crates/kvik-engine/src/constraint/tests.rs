//! Masks against languages that are listed in full, and random texts against an independent validator.

mod hostile;
mod json;
mod language;

use super::*;
use crate::{language_model::fake::byte_tokenizer_with, sampling::TokenMask};
use kvik_model::Tokenizer;
use std::sync::OnceLock;

/// Tokens of several bytes: words, pieces of JSON, and cuts through the middle of characters.
const PIECES: [&[u8]; 24] = [
    b"ab",
    b"ba",
    b"aab",
    b"abab",
    b"{\"",
    b"\":",
    b"\": ",
    b"\",",
    b"\"}",
    b"\"]",
    b"},",
    b"[[",
    b"]]",
    b", \"",
    b"true",
    b"null",
    b"12",
    b"-1",
    b"\n  ",
    b"  ",
    "é".as_bytes(),
    b"a\xC3",
    b"\xA9b",
    b"\xF0\x9F",
];

/// 256 bytes, the pieces, a token that ends texts, and a mark that is named like text.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    let roles = serde_json::json!({"eos_token": "<|end|>"});
    TOKENIZER.get_or_init(|| byte_tokenizer_with(&PIECES, &["<|end|>", "ab<|mark|>"], &roles))
}

const END: u32 = 256 + PIECES.len() as u32;

fn compiler() -> &'static ConstraintCompiler {
    static COMPILER: OnceLock<ConstraintCompiler> = OnceLock::new();
    COMPILER.get_or_init(|| ConstraintCompiler::new(tokenizer()).unwrap())
}

/// The tokens that may come next.
fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    // More rows than tokens, as in padded vocabularies.
    let mut logits = vec![0.0; tokenizer().vocab_len() + 13];
    constraint.mask(&mut logits).unwrap();
    let kept = logits.iter().enumerate().filter(|(_, logit)| **logit == 0.0);
    kept.map(|(id, _)| id as u32).collect()
}

/// A constraint that has seen `text`, byte by byte.
fn after(source: &ConstraintSource, text: &[u8]) -> Constraint {
    let mut constraint = compiler().compile(source).unwrap();
    for &byte in text {
        constraint.accept(u32::from(byte)).unwrap();
    }
    constraint
}
