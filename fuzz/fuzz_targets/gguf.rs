//! A GGUF file of arbitrary bytes: whatever its header promises must hold.
#![no_main]

use kvik_model::{
    gguf::Header,
    metadata::{Array, FromValue, Value},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let header = match Header::parse(file) {
        Ok(header) => header,
        Err(error) => return assert!(error.offset <= file.len() && !error.to_string().is_empty()),
    };
    for (key, value) in header.metadata.iter(file) {
        assert!(header.metadata.get(file, key).is_some());
        assert!(!value.to_string().is_empty());
        read_all(value);
    }
    for tensor in &header.tensors {
        assert!(tensor.range.as_ref().is_none_or(|range| range.is_empty() || range.end <= file.len()));
    }
});

/// Reads every element, and as each type that a list is asked for.
fn read_all(value: Value<'_>) {
    if let Some(array) = Array::from_value(value) {
        assert_eq!(array.iter().count(), array.len());
        array.iter().for_each(read_all);
        let _ = Vec::<&str>::from_value(value);
        let _ = Vec::<f32>::from_value(value);
        let _ = Vec::<i32>::from_value(value);
    }
}
