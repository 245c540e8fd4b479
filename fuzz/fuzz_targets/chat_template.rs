//! An arbitrary chat template before an arbitrary conversation: it ends, with a text or a sentence.
#![no_main]

use kvik_model::{ChatTemplate, Message};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|input: &[u8]| {
    // The template, then roles and contents in turn, divided by NUL.
    let input = String::from_utf8_lossy(input);
    let mut parts = input.split('\0');
    let template = parts.next().unwrap_or_default();
    let mut messages = vec![Message::new("user", "Why is the sky blue?"), Message::new("assistant", "It is not.")];
    while let (Some(role), Some(content)) = (parts.next(), parts.next()) {
        messages.push(Message::new(role, content));
    }
    let variables = json!({"bos_token": "<s>", "eos_token": "</s>", "tools": [{"name": "f", "n": [1, 2.5, null]}]});
    let rendered = ChatTemplate::new(template)
        .and_then(|template| template.render(&messages, true, variables.as_object().unwrap()));
    if let Err(error) = rendered {
        assert!(!error.to_string().is_empty());
    }
});
