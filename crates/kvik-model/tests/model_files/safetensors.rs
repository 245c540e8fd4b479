//! safetensors files, held to the reference implementation: what it accepts, Kvik accepts, and sees the same in it.

use kvik_kernels::quant::TensorType;
use kvik_model::{Checkpoint, safetensors::parse_header};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

use crate::{FIXED_BYTES, allocation::peak_bytes_of, explore_bytes};

/// A file with the reference implementation's own writer.
fn sample() -> Vec<u8> {
    let half: Vec<u8> =
        [1.5f32, -2.0].iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let brain: Vec<u8> =
        [0.5f32, 3.0].iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let full: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let tensors = [
        ("model.norm", view(Dtype::F16, &[2], &half)),
        ("model.bias", view(Dtype::BF16, &[2], &brain)),
        ("model.matrix", view(Dtype::F32, &[2, 3], &full)),
        ("model.ids", view(Dtype::I64, &[1], &[9; 8])),
        ("model.none", view(Dtype::F32, &[0, 3], &[])),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

fn write(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Parses within the bound on memory.
fn parse(bytes: &[u8]) -> Result<usize, String> {
    let (result, peak) = peak_bytes_of(|| parse_header(bytes));
    assert!(
        peak <= 32 * bytes.len() + FIXED_BYTES,
        "{peak} bytes were allocated for a file of {}",
        bytes.len()
    );
    result.map(|tensors| tensors.len()).map_err(|error| error.to_string())
}

fn open(bytes: &[u8]) -> Result<Checkpoint, String> {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    explore_bytes(&folder.path().join("m.bin"), bytes)
}

#[test]
fn the_reference_writers_tensors_read_back() {
    let checkpoint = open(&sample()).unwrap();
    let floats = |name: &str| checkpoint.tensor(name).unwrap().to_f32().unwrap();
    assert_eq!(floats("model.norm"), [1.5, -2.0]);
    assert_eq!(floats("model.bias"), [0.5, 3.0]);
    let matrix = checkpoint.tensor("model.matrix").unwrap();
    assert_eq!((matrix.ty, matrix.rows(), matrix.cols()), (TensorType::F32, 2, 3));
    assert_eq!(floats("model.matrix"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(checkpoint.tensor("model.none").unwrap().rows(), 0);
    let refused = checkpoint.tensor("model.ids").unwrap_err().to_string();
    assert!(refused.contains("\"model.ids\"") && refused.contains("I64"), "{refused}");
    assert_eq!(checkpoint.metadata().require::<&str>("model_type"), Ok("llama"));
    assert_eq!(checkpoint.tensors().len(), 5);
}

#[test]
fn cut_off_anywhere_it_is_an_error_that_says_what_to_do() {
    let whole = sample();
    let (header, _) = SafeTensors::read_metadata(&whole).unwrap();
    for length in 0..whole.len() {
        let message = parse(&whole[..length]).unwrap_err();
        let part_end = [8, 8 + header, whole.len()].into_iter().find(|end| length < *end).unwrap();
        let missing = format!("cut off: {} bytes ", part_end - length);
        assert!(message.contains(&missing) && message.contains("download it again"), "{length}: {message}");
    }
}

#[test]
fn no_flipped_bit_and_no_huge_length_does_harm() {
    let whole = sample();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = parse(&bytes);
        agree_with_reference(&bytes);
    }
    for length in [u64::MAX, 1 << 63, 1 << 60, 1 << 32, 100_000_001, 100_000_000, whole.len() as u64, 0, 1] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(parse(&bytes).is_err());
    }
}

#[test]
fn each_kind_of_damage_is_named() {
    let one = |fields: &str, data: usize| parse(&write(&format!("{{\"t\":{{{fields}}}}}"), &vec![0; data]));
    let says = |result: Result<usize, String>, part: &str| {
        let message = result.unwrap_err();
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    };
    assert_eq!(one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 8), Ok(1));
    says(one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 5), "3 bytes are missing");
    says(one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 9), "1 bytes at the end");
    says(one(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#, 8), "\"t\" of F32 [3]");
    says(one(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#, 8), "bytes 8..0");
    says(one(r#""dtype":"F32","shape":[2],"data_offsets":[1,9]"#, 9), "data byte 1 instead of 0");
    says(
        one(r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]"#, 8),
        "larger than memory",
    );
    says(one(r#""dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]"#, 8), "larger than memory");
    says(
        one(r#""dtype":"F32","shape":[1],"data_offsets":[18446744073709551612,18446744073709551616]"#, 8),
        "cannot be read",
    );
    says(
        one(r#""dtype":"F32","shape":[1],"data_offsets":[18446744073709551611,18446744073709551615]"#, 8),
        "instead of 0",
    );
    says(one(r#""dtype":"F32","shape":[-1],"data_offsets":[0,8]"#, 8), "cannot be read");
    says(one(r#""dtype":"Z9","shape":[1],"data_offsets":[0,8]"#, 8), "Z9");
    says(one(r#""shape":[1],"data_offsets":[0,8]"#, 8), "dtype");
    let entry = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    says(parse(&write(&format!(r#"{{"t":{entry},"t":{entry}}}"#), &[])), "\"t\" occurs twice");
    says(parse(&write("[1]", &[])), "an object of tensors");
    let deep = format!(r#"{{"__metadata__":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse(&write(&deep, &[])), Ok(0));
    says(parse(&write(&deep.replace("__metadata__", "t"), &[])), "cannot be read");
}

#[test]
fn the_densest_headers_stay_within_the_bound() {
    let ones = vec!["1"; 50_000].join(",");
    let shape = format!(r#"{{"t":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#);
    assert_eq!(parse(&write(&shape, &[0])), Ok(1));
    let entries: Vec<String> = (0..10_000)
        .map(|index| {
            format!(r#""{index}":{{"dtype":"U8","shape":[],"data_offsets":[{index},{}]}}"#, index + 1)
        })
        .collect();
    assert_eq!(parse(&write(&format!("{{{}}}", entries.join(",")), &[0; 10_000])), Ok(10_000));
}

/// Kvik and the reference implementation accept the same bytes and see the same tensors, but for a name that occurs
/// twice, which only Kvik refuses. (`bytes` are to have no `__metadata__`: Kvik does not look into it.)
fn agree_with_reference(bytes: &[u8]) {
    match (parse_header(bytes), SafeTensors::read_metadata(bytes)) {
        (Ok(ours), Ok((header, theirs))) => {
            assert_eq!(ours.len(), theirs.tensors().len());
            for info in ours {
                let reference = theirs.info(&info.name).unwrap();
                let (start, end) = reference.data_offsets;
                assert_eq!(info.shape, reference.shape);
                assert_eq!(info.range, Some(8 + header + start..8 + header + end));
                assert_eq!(info.ty.to_string(), reference.dtype.to_string());
            }
        }
        (Err(ours), Ok(_)) => assert!(ours.to_string().contains("occurs twice"), "refused: {ours}"),
        (Ok(_), Err(theirs)) => panic!("accepted in spite of {theirs}"),
        (Err(_), Err(_)) => {}
    }
}

proptest! {
    #[test]
    fn random_headers_fare_as_with_the_reference(
        entries in proptest::collection::vec((0usize..3, 0usize..4, 0usize..12, 0usize..12), 0..4),
        data in 0usize..24,
    ) {
        let entries: Vec<String> = entries
            .iter()
            .enumerate()
            .map(|(index, (dtype, size, start, end))| {
                let dtype = ["U8", "F16", "F4"][*dtype];
                format!(r#""{index}":{{"dtype":"{dtype}","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        agree_with_reference(&write(&format!("{{{}}}", entries.join(",")), &vec![0; data]));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = parse(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
    }
}
