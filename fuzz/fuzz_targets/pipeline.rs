//! An arbitrary pipeline: it is read, and what it is called is read as the same, or it is refused at a place inside it.
#![no_main]

use kvik_kv::Pipeline;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    match Pipeline::parse(&text) {
        Ok(pipeline) => {
            let name = pipeline.to_string();
            assert_eq!(Pipeline::parse(&name).expect("a pipeline's name is a pipeline"), pipeline, "{name}");
        }
        Err(error) => assert!(error.at <= text.chars().count() && !error.message.is_empty()),
    }
});
