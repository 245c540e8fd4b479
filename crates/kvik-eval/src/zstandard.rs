//! Zstandard, in which data sets and traces are packed.

use std::io::{self, Read};

/// How a frame begins.
const MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Whether `bytes` look packed.
pub(crate) fn is_packed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// What is in the frames of `bytes`.
///
/// # Errors
/// They are no frames, or are damaged.
pub(crate) fn unpack(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    let mut rest = bytes;
    // A packed file may be several frames in a row.
    while !rest.is_empty() {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(&mut rest).map_err(io::Error::other)?;
        decoder.read_to_end(&mut unpacked)?;
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_unpacked_one_or_more_and_never_half() {
        // `printf 'kvik kvik kvik kvik\n' | zstd`
        let packed = include_bytes!("../tests/packed.zst");
        assert!(is_packed(packed) && !is_packed(b"kvik"));
        assert_eq!(unpack(packed).unwrap(), b"kvik kvik kvik kvik\n");
        assert_eq!(unpack(&packed.repeat(2)).unwrap(), b"kvik kvik kvik kvik\n".repeat(2));
        assert!(unpack(&packed[..packed.len() - 6]).is_err());
    }
}
