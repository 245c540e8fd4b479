//! Reads GGUF, the single-file model format of llama.cpp, versions 2 and 3, little endian.
//!
//! A file is a header, a list of key-value pairs, a table of tensors and the tensors' data. [`Header::parse`] walks
//! the first three once, checks everything, and keeps only *where* things lie: a vocabulary of 262,144 strings
//! costs no allocation. The file is not trusted: each count and length is held against the bytes that are left
//! before anything is done with it, so that what opening a file costs is bounded by the file's own size.
//!
//! Source: the GGUF specification (`docs/gguf.md` of the ggml project).

mod cursor;
mod dictionary;
mod error;
mod tensor_table;
mod value;

use cursor::Cursor;
pub use dictionary::Dictionary;
pub use error::{GgufError, Place, Problem};
use tensor_table::Entry;
pub use value::GgufArray;

use crate::{metadata::Value, tensor::TensorInfo};

/// The first four bytes of a GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Pairs and tensors that Kvik reads at most; the largest models have a few thousand. It bounds the memory that
/// the index of a huge damaged file can take.
const COUNT_LIMIT: u64 = 1 << 17;

const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// What precedes the data in a GGUF file, checked: an index of where everything lies.
#[derive(Debug)]
pub struct Header {
    /// Version of the format, 2 or 3.
    pub version: u32,
    /// The key-value pairs.
    pub metadata: Dictionary,
    /// The tensors in table order, with their byte ranges in the file.
    pub tensors: Vec<TensorInfo>,
}

impl Header {
    /// Reads the header of `file`, the bytes of a whole GGUF file.
    ///
    /// # Errors
    /// Any damage, with its place. A tensor whose format is unknown is none: it can be listed, not read.
    pub fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor::new(file, 0);
        if !file.starts_with(&MAGIC) {
            return Err(cursor.error_at(0, Problem::NotGguf));
        }
        cursor.take(MAGIC.len() as u64)?;
        let version = read_version(&mut cursor)?;
        let tensor_count = read_count(&mut cursor, tensor_table::LEAST_ENTRY_BYTES)?;
        let pair_count = read_count(&mut cursor, Dictionary::LEAST_PAIR_BYTES)?;

        let metadata = Dictionary::read(&mut cursor, file, pair_count)?;
        let alignment = alignment(&metadata, file)?;

        let mut entries = Vec::new();
        for _ in 0..tensor_count {
            entries.push(Entry::read(&mut cursor)?);
        }
        let data_start = cursor.position().next_multiple_of(alignment);
        let tensors = tensor_table::locate_all(&entries, data_start, alignment, file.len())?;
        Ok(Self { version, metadata, tensors })
    }
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let offset = cursor.position();
    let problem = match cursor.u32()? {
        version @ 2..=3 => return Ok(version),
        swapped if swapped != 0 && swapped.trailing_zeros() >= 16 => Problem::BigEndian,
        version => Problem::Version(version),
    };
    Err(cursor.error_at(offset, problem))
}

fn read_count(cursor: &mut Cursor<'_>, least_bytes: usize) -> Result<usize, GgufError> {
    let offset = cursor.position();
    let count = cursor.count(least_bytes)?;
    if count as u64 > COUNT_LIMIT {
        let problem = Problem::TooMany { count: count as u64, limit: COUNT_LIMIT };
        return Err(cursor.error_at(offset, problem));
    }
    Ok(count)
}

fn alignment(metadata: &Dictionary, file: &[u8]) -> Result<usize, GgufError> {
    match metadata.get(file, ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(bytes @ 1..=0xffff_ffff)) => Ok(bytes as usize),
        Some(other) => Err(GgufError {
            problem: Problem::Alignment(other.to_string()),
            place: Place::Key(ALIGNMENT_KEY.to_owned()),
            offset: metadata.offset_of(file, ALIGNMENT_KEY),
        }),
    }
}
