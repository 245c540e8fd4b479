//! Well-formed GGUF files, and files that are wrong in one particular way.

use std::fs;

use kvik_kernels::quant::TensorType;
use kvik_model::{
    Checkpoint, MetadataError,
    checkpoint::Format,
    metadata::{Array, Value},
};
use tempfile::TempDir;

use crate::{
    explore_bytes,
    gguf_writer::{GgufWriter, array, string, value_type::*},
};

const TYPE_F32: u32 = 0;
const TYPE_Q8_0: u32 = 8;
const TYPE_IQ4_NL: u32 = 20;

fn open(writer: &GgufWriter) -> Checkpoint {
    let folder = TempDir::new().unwrap();
    explore_bytes(&folder.path().join("m.gguf"), &writer.bytes()).unwrap()
}

fn open_error(bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    explore_bytes(&folder.path().join("m.gguf"), bytes).unwrap_err()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn every_value_type_reads_back() {
    let list = array(I16, &[(-3i16).to_le_bytes().to_vec(), 4i16.to_le_bytes().to_vec()]);
    let nested = array(ARRAY, &[list, array(STRING, &[string("x")]), array(U8, &[])]);
    let writer = GgufWriter::new(3)
        .pair("u8", U8, &[200])
        .pair("i8", I8, &[0xff])
        .pair("u16", U16, &[0x34, 0x12])
        .pair("i16", I16, &(-2i16).to_le_bytes())
        .u32("u32", u32::MAX)
        .pair("i32", I32, &i32::MIN.to_le_bytes())
        .pair("f32", F32, &0.1f32.to_le_bytes())
        .pair("bool", BOOL, &[1])
        .pair("string", STRING, &string("Grüße 🦀"))
        .pair("u64", U64, &u64::MAX.to_le_bytes())
        .pair("i64", I64, &i64::MIN.to_le_bytes())
        .pair("f64", F64, &1e300f64.to_le_bytes())
        .pair("nested", ARRAY, &nested);
    let checkpoint = open(&writer);
    let shown: Vec<String> =
        checkpoint.metadata().iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        shown,
        [
            "u8=200",
            "i8=-1",
            "u16=4660",
            "i16=-2",
            "u32=4294967295",
            "i32=-2147483648",
            "f32=0.1",
            "bool=true",
            "string=\"Grüße 🦀\"",
            "u64=18446744073709551615",
            "i64=-9223372036854775808",
            "f64=1e300",
            "nested=[[-3, 4], [\"x\"], []]",
        ]
    );
}

#[test]
fn getters_convert_what_fits_and_name_what_does_not() {
    let floats: Vec<Vec<u8>> = [0.5f32, -1.0].iter().map(|value| value.to_le_bytes().to_vec()).collect();
    let writer = GgufWriter::new(2)
        .pair("small", U8, &[7])
        .pair("negative", I64, &(-7i64).to_le_bytes())
        .pair("huge", F64, &1e300f64.to_le_bytes())
        .pair("name", STRING, &string("llama"))
        .pair("tokens", ARRAY, &array(STRING, &[string("a"), string(""), string("ß")]))
        .pair("scores", ARRAY, &array(F32, &floats));
    let checkpoint = open(&writer);
    assert_eq!(checkpoint.format(), Format::Gguf { version: 2 });
    let metadata = checkpoint.metadata();
    assert_eq!(metadata.require::<usize>("small"), Ok(7));
    assert_eq!(metadata.require::<i32>("small"), Ok(7));
    assert_eq!(metadata.require::<f32>("small"), Ok(7.0));
    assert_eq!(metadata.require::<i32>("negative"), Ok(-7));
    assert_eq!(metadata.require::<&str>("name"), Ok("llama"));
    assert_eq!(metadata.require::<Vec<&str>>("tokens"), Ok(vec!["a", "", "ß"]));
    assert_eq!(metadata.require::<Vec<f32>>("scores"), Ok(vec![0.5, -1.0]));
    assert_eq!(metadata.require::<Array<'_>>("tokens").map(|tokens| tokens.len()), Ok(3));
    assert_eq!(metadata.find::<u32>("absent"), Ok(None));
    assert_eq!(metadata.require::<u32>("absent"), Err(MetadataError::Missing { key: "absent".to_owned() }));

    let mismatch = |error: MetadataError| error.to_string();
    assert_says(&metadata.require::<u32>("negative").map_err(mismatch).unwrap_err(), &["\"negative\"", "-7"]);
    assert_says(
        &metadata.require::<bool>("small").map_err(mismatch).unwrap_err(),
        &["\"small\"", "7", "true"],
    );
    assert_says(&metadata.require::<f32>("huge").map_err(mismatch).unwrap_err(), &["1e300"]);
    assert_says(&metadata.require::<u32>("name").map_err(mismatch).unwrap_err(), &["\"llama\"", "integer"]);
    assert!(metadata.require::<Vec<i32>>("tokens").is_err());
}

#[test]
fn tensors_read_back_outermost_dimension_first_at_any_alignment() {
    let vector: Vec<u8> = [1.0f32, -2.5, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let matrix: Vec<u8> = (0..2 * 2 * 34).map(|byte| byte as u8).collect();
    for (version, alignment) in [(3, 1), (3, 8), (2, 24), (3, 32), (3, 4096)] {
        let writer = GgufWriter::new(version)
            .alignment(alignment)
            .tensor("norm", TYPE_F32, &[3], &vector)
            .tensor("matrix", TYPE_Q8_0, &[64, 2], &matrix)
            .tensor("scalar", TYPE_F32, &[], &vector[..4]);
        let checkpoint = open(&writer);
        let norm = checkpoint.tensor("norm").unwrap();
        assert_eq!((norm.rows(), norm.cols(), norm.row_bytes()), (1, 3, 12));
        assert_eq!(norm.to_f32(), Some(vec![1.0, -2.5, 3.0]));
        let read = checkpoint.tensor("matrix").unwrap();
        assert_eq!((read.ty, read.shape, read.rows(), read.cols()), (TensorType::Q8_0, &[2, 64][..], 2, 64));
        assert_eq!(read.bytes, matrix);
        assert_eq!(read.row_range(1..2), &matrix[68..]);
        assert_eq!(read.row_range(1..9), &matrix[68..]);
        assert_eq!(read.to_f32(), None);
        assert_eq!(checkpoint.tensor("scalar").unwrap().to_f32(), Some(vec![1.0]));
        let names: Vec<&str> = checkpoint.tensors().map(|info| info.name.as_str()).collect();
        assert_eq!(names, ["norm", "matrix", "scalar"]);
    }
}

#[test]
fn a_missing_tensor_is_named_with_its_nearest_neighbour() {
    let checkpoint = open(&GgufWriter::new(3).tensor("blk.0.attn_q.weight", TYPE_F32, &[1], &[0; 4]));
    assert!(checkpoint.find_tensor("output.weight").unwrap().is_none());
    assert!(!checkpoint.contains("output.weight"));
    let close = checkpoint.tensor("blk.0.attn_v.weight").unwrap_err().to_string();
    assert_says(&close, &["\"blk.0.attn_v.weight\"", "nearest name is \"blk.0.attn_q.weight\""]);
    let far = checkpoint.tensor("output.weight").unwrap_err().to_string();
    assert_says(&far, &["\"output.weight\"", "incomplete"]);
}

#[test]
fn a_format_that_kvik_does_not_run_is_listed_and_refused_when_asked_for() {
    let checkpoint = open(
        &GgufWriter::new(3)
            .tensor("known", TYPE_IQ4_NL, &[32], &[0; 18])
            .tensor("unheard", 4711, &[32], &[0; 18])
            .tensor("fine", TYPE_F32, &[1], &[0; 4]),
    );
    let listed: Vec<(String, Option<usize>)> =
        checkpoint.tensors().map(|info| (info.ty.to_string(), info.bytes())).collect();
    assert_eq!(
        listed,
        [("IQ4_NL".to_owned(), Some(18)), ("type 4711".to_owned(), None), ("F32".to_owned(), Some(4))]
    );
    assert!(checkpoint.contains("known") && checkpoint.tensor("fine").is_ok());
    assert_says(&checkpoint.tensor("known").unwrap_err().to_string(), &["\"known\"", "IQ4_NL", "Q8_0"]);
    assert_says(&checkpoint.find_tensor("unheard").unwrap_err().to_string(), &["\"unheard\"", "type 4711"]);
}

#[test]
fn wrong_headers_are_named() {
    assert_says(&open_error(b""), &["empty", "download it again"]);
    assert_says(&open_error(b"PK\x03\x04 and so on"), &["PyTorch"]);
    assert_says(&open_error(b"version https://git-lfs.github.com/spec/v1\noid"), &["git lfs pull"]);
    assert_says(&open_error(b"<!DOCTYPE html>"), &["web page"]);
    assert_says(&open_error(b"hello"), &["neither a GGUF nor a safetensors file"]);
    assert_says(&open_error(&GgufWriter::new(1).bytes()), &["version 1", "byte 4"]);
    assert_says(&open_error(&GgufWriter::new(4).bytes()), &["version 4"]);
    assert_says(&open_error(&GgufWriter::new(3u32.swap_bytes()).bytes()), &["big-endian"]);
    let split = GgufWriter::new(3).pair("split.count", U16, &[3, 0]);
    assert_says(&open_error(&split.bytes()), &["one of 3 parts", "--merge"]);
}

#[test]
fn wrong_metadata_is_named_with_its_key_and_place() {
    let error = |writer: GgufWriter| open_error(&writer.bytes());
    let new = || GgufWriter::new(3);
    assert_says(&error(new().u32("a.b", 1).u32("c", 2).u32("a.b", 3)), &["\"a.b\"", "twice", "byte 68"]);
    assert_says(&error(new().pair("k", 13, &[0])), &["\"k\"", "value type 13", "byte 33"]);
    assert_says(&error(new().pair("k", BOOL, &[2])), &["\"k\"", "truth value is 2", "byte 37"]);
    assert_says(&error(new().pair("k", STRING, b"\x02\0\0\0\0\0\0\0a\xff")), &["\"k\"", "UTF-8", "byte 46"]);
    assert_says(&error(new().pair("general.alignment", U32, &[0; 4])), &["alignment is 0", "byte 53"]);
    assert_says(&error(new().pair("general.alignment", STRING, &string("x"))), &["alignment is \"x\""]);
    let deep = (0..5).fold(array(U8, &[vec![1]]), |inner, _| array(ARRAY, &[inner]));
    assert_says(&error(new().pair("k", ARRAY, &deep)), &["\"k\"", "nested more than 4 deep"]);
}

#[test]
fn wrong_tensors_are_named_with_the_reason() {
    let error = |writer: GgufWriter| open_error(&writer.bytes());
    let new = || GgufWriter::new(3);
    let twice = new().tensor("t", TYPE_F32, &[1], &[0; 4]).tensor("t", TYPE_F32, &[1], &[0; 4]);
    assert_says(&error(twice), &["\"t\"", "twice"]);
    assert_says(&error(new().tensor("t", TYPE_F32, &[1; 5], &[0; 4])), &["\"t\"", "5 dimensions"]);
    assert_says(&error(new().tensor("t", TYPE_Q8_0, &[33], &[0; 68])), &["\"t\"", "33", "32", "Q8_0"]);
    let large = new().tensor("t", TYPE_F32, &[1 << 40, 1 << 40], &[0; 4]);
    assert_says(&error(large), &["\"t\"", "larger than memory"]);
    let large = new().tensor("t", TYPE_F32, &[1 << 62], &[0; 4]);
    assert_says(&error(large), &["\"t\"", "larger than memory"]);
    let misaligned = new().tensor_at(4, "t", TYPE_F32, &[1], &[0; 4]);
    assert_says(&error(misaligned), &["\"t\"", "data offset 4", "alignment 32"]);
    let overlapping =
        new().tensor_at(0, "t", TYPE_F32, &[9], &[0; 36]).tensor_at(32, "u", TYPE_F32, &[1], &[0; 4]);
    assert_says(&error(overlapping), &["\"u\"", "overlaps", "\"t\""]);
    let outside = new().tensor("t", TYPE_F32, &[100], &[0; 40]);
    assert_says(&error(outside), &["cut off", "360 bytes are missing", "download it again"]);
    let beyond = new().tensor_at(1 << 60, "t", TYPE_F32, &[1], &[]).header();
    assert_says(&open_error(&beyond), &["bytes are missing"]);
}

#[test]
fn a_large_vocabulary_costs_no_allocation_per_token() {
    let tokens: Vec<Vec<u8>> = (0..262_144).map(|id| string(&format!("token{id}"))).collect();
    let writer = GgufWriter::new(3).pair("tokenizer.ggml.tokens", ARRAY, &array(STRING, &tokens));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, writer.bytes()).unwrap();
    let (checkpoint, peak) = crate::allocation::peak_bytes_of(|| Checkpoint::open(&path).unwrap());
    assert!(peak < 4096, "opening allocated {peak} bytes");
    let Some(Value::Array(array)) = checkpoint.metadata().get("tokenizer.ggml.tokens") else { panic!() };
    let last = array.iter().last().map(|token| token.to_string());
    assert_eq!((array.len(), last.as_deref()), (262_144, Some("\"token262143\"")));
}

#[test]
fn released_rows_leave_memory_and_read_the_same_again() {
    const ROWS: usize = 64;
    const ROW_BYTES: usize = 256 << 10;
    let data: Vec<u8> = (0..ROWS * ROW_BYTES).map(|byte| (byte % 251) as u8).collect();
    let checkpoint =
        open(&GgufWriter::new(3).tensor("t", TYPE_F32, &[ROW_BYTES as u64 / 4, ROWS as u64], &data));
    let tensor = checkpoint.tensor("t").unwrap();
    let resident = || kvik_memory::counters::resident_bytes().unwrap();
    assert_eq!(tensor.bytes, data);
    let before = resident();
    checkpoint.release(&tensor, 0..ROWS / 2);
    checkpoint.release(&tensor, ROWS / 2..ROWS);
    // Other tests run meanwhile, but none of them holds much.
    let given_back = before.saturating_sub(resident());
    assert!(given_back > data.len() as u64 / 2, "only {given_back} bytes of {} left", data.len());
    assert_eq!(tensor.bytes, data);
}
