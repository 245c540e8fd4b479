//! A safetensors file of arbitrary bytes: the tensors cover its data without gap or overlap.
#![no_main]

use kvik_model::safetensors::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let tensors = match parse_header(file) {
        Ok(tensors) => tensors,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let ranges: Vec<_> = tensors.into_iter().filter_map(|tensor| tensor.range).collect();
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    assert!(ranges.last().is_none_or(|last| last.end == file.len()));
});
