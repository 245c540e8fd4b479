//! A small GGUF file, cut at every length, with every bit of its header flipped, with every integer of its header
//! made huge, and random bytes: an error or a model, never a panic, and never more memory than the file justifies.

use kvik_model::gguf::Header;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::{
    explore_bytes,
    gguf_writer::{GgufWriter, sample, value_type::U8},
};

#[test]
fn the_sample_is_well_formed() {
    let folder = TempDir::new().unwrap();
    let checkpoint = explore_bytes(&folder.path().join("m.gguf"), &sample().bytes()).unwrap();
    assert_eq!((checkpoint.tensors().len(), checkpoint.metadata().iter().count()), (3, 5));
}

#[test]
fn cut_off_anywhere_it_is_an_error_that_says_what_to_do() {
    let folder = TempDir::new().unwrap();
    let (path, whole) = (folder.path().join("m.gguf"), sample().bytes());
    for length in 0..whole.len() {
        let message = explore_bytes(&path, &whole[..length]).unwrap_err();
        let helpful = message.contains("download it again") || message.contains("check the path");
        assert!(helpful, "at {length} bytes: {message}");
    }
}

#[test]
fn no_flipped_bit_does_harm() {
    let folder = TempDir::new().unwrap();
    let (path, header) = (folder.path().join("m.gguf"), sample().header().len());
    let mut bytes = sample().bytes();
    let mut refused = 0;
    for bit in 0..header * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(explore_bytes(&path, &bytes).is_err());
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // Flips inside names, texts and numbers leave a well-formed file; those of structure must be noticed.
    assert!(refused > header * 4, "only {refused} of {} flips were noticed", header * 8);
}

#[test]
fn no_huge_integer_does_harm() {
    let folder = TempDir::new().unwrap();
    let (path, header) = (folder.path().join("m.gguf"), sample().header().len());
    for position in 0..header - 8 {
        for value in [u64::MAX, 1 << 63, 1 << 60, (1 << 32) + 1, u32::MAX as u64, 100_000] {
            let mut bytes = sample().bytes();
            bytes[position..position + 8].copy_from_slice(&value.to_le_bytes());
            let _ = explore_bytes(&path, &bytes);
        }
    }
    // The two counts of the file itself, at bytes 8 and 16.
    for position in [8, 16] {
        let mut bytes = sample().bytes();
        bytes[position..position + 8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        let message = explore_bytes(&path, &bytes).unwrap_err();
        assert!(message.contains("1152921504606846976 cannot fit"), "{message}");
    }
}

#[test]
fn the_densest_files_stay_within_the_bound() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    let key = |index: u32| String::from_utf8(index.to_le_bytes().map(|byte| byte & 0x7f).to_vec()).unwrap();
    let ids = || (0..1u32 << 14).map(|index| (index & 0x7f) | (index >> 7) << 8);
    let pairs = ids().fold(GgufWriter::new(3), |writer, id| writer.pair(&key(id), U8, &[1]));
    assert!(explore_bytes(&path, &pairs.bytes()).is_ok());
    let tensors = ids().fold(GgufWriter::new(3), |writer, id| writer.tensor_at(0, &key(id), 99, &[], &[]));
    assert!(explore_bytes(&path, &tensors.bytes()).is_ok());
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Header::parse(&bytes);
        let _ = Header::parse(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        let _ = Header::parse(&[b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0", &bytes[..]].concat());
    }

    #[test]
    fn random_damage_does_no_harm(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = sample().bytes();
        for (index, byte) in edits {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let folder = TempDir::new().unwrap();
        let _ = explore_bytes(&folder.path().join("m.gguf"), &bytes);
    }
}
