//! A prefix as a file.
//!
//! Everything is little endian. In order: `KVIKPREF` and the version; the seed of its chain; the tokens, with their number; the
//! bytes of the cache that follows; a checksum of all that. Then the cache, as `kvik_kv` exports it without a checksum, and its
//! checksum, which hangs on the first one: a header and a cache of two files do not go together. Checksums are xxh3 with 128
//! bits, which takes a few milliseconds where SHA-256 takes longer than reading: they guard against damage, and names are SHA-256.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use super::address::Address;

const MAGIC: [u8; 8] = *b"KVIKPREF";
const VERSION: u32 = 1;
/// Bytes before the tokens: magic, version, seed, number of tokens.
const FIXED_BYTES: usize = 8 + 4 + 32 + 8;
const CHECKSUM_BYTES: usize = 16;
/// Tokens that no context of today comes near to.
const MOST_TOKENS: u64 = 1 << 26;

/// Why a file is no prefix.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no prefix, or one of another version")]
    Foreign,
    #[error("it was damaged: {0}")]
    Damaged(&'static str),
}

/// What a file says of its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) seed: Address,
    pub(crate) tokens: Vec<u32>,
    pub(crate) image_bytes: u64,
}

impl Header {
    /// Bytes of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        let header = FIXED_BYTES + 4 * self.tokens.len() + 8 + CHECKSUM_BYTES;
        header as u64 + self.image_bytes + CHECKSUM_BYTES as u64
    }

    /// The bytes of the header, and its checksum.
    fn encode(&self) -> (Vec<u8>, u128) {
        let mut bytes = Vec::with_capacity(FIXED_BYTES + 4 * self.tokens.len() + 8 + CHECKSUM_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.seed.0);
        bytes.extend((self.tokens.len() as u64).to_le_bytes());
        self.tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
        bytes.extend(self.image_bytes.to_le_bytes());
        let checksum = xxh3_128(&bytes);
        bytes.extend(checksum.to_le_bytes());
        (bytes, checksum)
    }

    /// Reads a header from a file of `file_bytes` bytes, and returns its checksum too.
    pub(crate) fn read(source: &mut impl Read, file_bytes: u64) -> Result<(Self, u128), EntryError> {
        let mut bytes = vec![0; FIXED_BYTES];
        source.read_exact(&mut bytes).map_err(too_early)?;
        let (magic, rest) = bytes.split_at(MAGIC.len());
        let (version, rest) = rest.split_at(4);
        if magic != MAGIC || version != VERSION.to_le_bytes() {
            return Err(EntryError::Foreign);
        }
        let (seed, tokens) = rest.split_at(32);
        let seed = Address(seed.try_into().map_err(|_| EntryError::Foreign)?);
        let tokens = number(tokens);
        if tokens > MOST_TOKENS.min(file_bytes / 4) {
            return Err(EntryError::Damaged("it says that there are more tokens than it has room for"));
        }
        bytes.resize(FIXED_BYTES + 4 * tokens as usize + 8, 0);
        source.read_exact(&mut bytes[FIXED_BYTES..]).map_err(too_early)?;
        let checksum = read_checksum(source)?;
        if checksum != xxh3_128(&bytes) {
            return Err(EntryError::Damaged("the checksum of its tokens is another"));
        }
        let (tokens, image_bytes) = bytes[FIXED_BYTES..].split_at(4 * tokens as usize);
        let tokens = tokens.chunks_exact(4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]])).collect();
        let header = Self { seed, tokens, image_bytes: number(image_bytes) };
        if header.file_bytes() != file_bytes {
            return Err(EntryError::Damaged("it has another length than it says"));
        }
        Ok((header, checksum))
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn too_early(error: io::Error) -> EntryError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => EntryError::Damaged("it ends too early"),
        _ => EntryError::Io(error),
    }
}

fn read_checksum(source: &mut impl Read) -> Result<u128, EntryError> {
    let mut bytes = [0; CHECKSUM_BYTES];
    source.read_exact(&mut bytes).map_err(too_early)?;
    Ok(u128::from_le_bytes(bytes))
}

fn image_checksum(image: &[u8], header: u128) -> u128 {
    xxh3_128_with_seed(image, header as u64)
}

/// Writes a file.
pub(crate) fn write(target: &mut impl Write, header: &Header, image: &[u8]) -> io::Result<()> {
    let (bytes, checksum) = header.encode();
    target.write_all(&bytes)?;
    target.write_all(image)?;
    target.write_all(&image_checksum(image, checksum).to_le_bytes())
}

/// Reads a file of `file_bytes` bytes, and verifies all of it.
pub(crate) fn read(source: &mut impl Read, file_bytes: u64) -> Result<(Header, Vec<u8>), EntryError> {
    let (header, checksum) = Header::read(source, file_bytes)?;
    let mut image = Vec::with_capacity(header.image_bytes as usize);
    source.take(header.image_bytes).read_to_end(&mut image)?;
    if image.len() as u64 != header.image_bytes {
        return Err(EntryError::Damaged("it ends too early"));
    }
    if read_checksum(source)? != image_checksum(&image, checksum) {
        return Err(EntryError::Damaged("the checksum of its cache is another"));
    }
    Ok((header, image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(seed: u8, tokens: &[u32], image: &[u8]) -> Vec<u8> {
        let header =
            Header { seed: Address([seed; 32]), tokens: tokens.to_vec(), image_bytes: image.len() as u64 };
        let mut bytes = Vec::new();
        write(&mut bytes, &header, image).unwrap();
        assert_eq!(header.file_bytes(), bytes.len() as u64);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<(Header, Vec<u8>), EntryError> {
        read(&mut &bytes[..], bytes.len() as u64)
    }

    proptest! {
        #[test]
        fn what_was_written_comes_back_and_what_was_damaged_does_not(
            tokens in prop::collection::vec(any::<u32>(), 0..70),
            image in prop::collection::vec(any::<u8>(), 0..300),
            seed in any::<u8>(),
            at in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let bytes = file(seed, &tokens, &image);
            let (header, read) = read_all(&bytes).unwrap();
            prop_assert_eq!((header.seed, header.tokens, read), (Address([seed; 32]), tokens, image));
            let at = at.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            prop_assert!(read_all(&damaged).is_err());
            prop_assert!(read_all(&bytes[..at]).is_err());
            let mut longer = bytes.clone();
            longer.extend_from_slice(&bytes[..=at]);
            prop_assert!(read_all(&longer).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic {
                let version = VERSION.to_le_bytes();
                bytes.splice(..0, MAGIC.into_iter().chain(version));
            }
            prop_assert!(read_all(&bytes).is_err());
        }
    }

    #[test]
    fn parts_of_two_files_do_not_go_together() {
        let (first, second) = (file(1, &[5; 64], &[7; 100]), file(1, &[6; 64], &[8; 100]));
        let image = first.len() - 100 - CHECKSUM_BYTES;
        let mixed = [&first[..image], &second[image..]].concat();
        assert!(matches!(read_all(&mixed), Err(EntryError::Damaged(_))));
    }
}
