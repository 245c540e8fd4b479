//! A `tokenizer.json` of arbitrary bytes, or of arbitrary edits to one that works, and the tokens it makes.
#![no_main]

use kvik_model::{Tokenizer, tokenizer::EncodeOptions};
use libfuzzer_sys::fuzz_target;

// Panics of the library that are caught must not count; those that are not still abort, behind this hook.
fuzz_target!(init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))), |file: &[u8]| {
    // What follows a NUL byte is the text to tokenise: JSON has none.
    let mut parts = file.splitn(2, |&byte| byte == 0);
    let json = parts.next().unwrap_or_default();
    let text = String::from_utf8_lossy(parts.next().unwrap_or(b"Why is the sky blue?"));
    match Tokenizer::from_tokenizer_json(json, &[]) {
        Ok(tokenizer) => {
            for parse_special in [false, true] {
                let Ok(ids) = tokenizer.encode(&text, EncodeOptions { add_special: true, parse_special }) else {
                    continue;
                };
                tokenizer.decode(&ids, true);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
