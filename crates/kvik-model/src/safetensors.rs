//! Reads the header of a safetensors file.
//!
//! A file is eight bytes of header length, a JSON header and the tensors' data, which the header must cover without
//! gap or overlap. The entry and format definitions are the `safetensors` crate's; the checks are our own, because
//! their errors name the tensor and say how many bytes are missing.
//!
//! Source: the format section of the safetensors project's README.

use std::{borrow::Cow, fmt};

use kvik_kernels::quant::TensorType;
use safetensors::tensor::{Dtype, TensorInfo as Entry};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::{
    quote::{Quoted, one_line},
    tensor::{StoredType, TensorInfo},
};

const LENGTH_BYTES: usize = 8;

/// The format's own limit.
const HEADER_BYTES_LIMIT: u64 = 100_000_000;

/// A safetensors file that cannot be read. Each sentence ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SafetensorsError {
    /// The file ends before its header does.
    #[error("the file is cut off: {missing} bytes of its header are missing; download it again")]
    HeaderCutOff {
        /// Bytes from the end of the file to the end of the header.
        missing: u64,
    },
    /// The header is longer than the format allows.
    #[error(
        "the header claims {0} bytes, more than the format's 100,000,000; the file is damaged, download it again"
    )]
    HeaderTooLong(u64),
    /// The header is not the JSON that the format asks for.
    #[error("the header cannot be read: {0}; the file is damaged, download it again")]
    Header(String),
    /// A name occurs twice.
    #[error("tensor {} occurs twice in the header; convert the model again", Quoted(.0))]
    Duplicate(String),
    /// The number of elements or bytes does not fit in 64 bits.
    #[error("tensor {} is larger than memory can be; the file is damaged, download it again", Quoted(.0))]
    Overflow(String),
    /// Shape and byte range disagree.
    #[error("tensor {} of {ty} {shape:?} cannot lie in bytes {start}..{end}; the file is damaged, download it again", Quoted(.name))]
    Size {
        /// The tensor.
        name: String,
        /// Its format.
        ty: String,
        /// Its shape.
        shape: Vec<usize>,
        /// First byte, from the end of the header.
        start: usize,
        /// One past the last byte.
        end: usize,
    },
    /// A tensor does not start where the one before ends.
    #[error("tensor {} starts at data byte {start} instead of {expected}; the file is damaged, convert the model again", Quoted(.name))]
    Layout {
        /// The tensor.
        name: String,
        /// Where it starts, from the end of the header.
        start: usize,
        /// Where the tensor before it ends.
        expected: usize,
    },
    /// The data ends before the last tensor does.
    #[error("the file is cut off: {missing} bytes are missing at its end; download it again")]
    DataCutOff {
        /// How many.
        missing: u64,
    },
    /// The data goes on after the last tensor.
    #[error("{extra} bytes at the end of the file belong to no tensor; download it again")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

/// Reads the header of `file`, the bytes of a whole safetensors file. The tensors come in the order of their data,
/// with byte ranges in the file.
///
/// # Errors
/// Any damage. A format that the kernels do not read is none: it can be listed, not read.
pub fn parse_header(file: &[u8]) -> Result<Vec<TensorInfo>, SafetensorsError> {
    let (header, data_start) = split_header(file)?;
    let Entries(mut entries) = serde_json::from_slice(header)
        .map_err(|error| SafetensorsError::Header(one_line(&error.to_string())))?;
    reject_duplicates(&entries)?;

    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut expected = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (start, end) = entry.data_offsets;
        let bits = data_bits(&entry).ok_or_else(|| SafetensorsError::Overflow(name.clone()))?;
        let ty = stored_type(entry.dtype);
        if end.checked_sub(start).is_none_or(|length| length as u128 * 8 != bits as u128) {
            return Err(SafetensorsError::Size { name, ty: ty.to_string(), shape: entry.shape, start, end });
        }
        if start != expected {
            return Err(SafetensorsError::Layout { name, start, expected });
        }
        expected = end;
        let range = data_start.checked_add(start).zip(data_start.checked_add(end));
        let Some((start, end)) = range else { return Err(SafetensorsError::Overflow(name)) };
        tensors.push(TensorInfo { name, ty, shape: entry.shape, range: Some(start..end) });
    }
    let data_bytes = file.len() - data_start;
    if expected > data_bytes {
        return Err(SafetensorsError::DataCutOff { missing: (expected - data_bytes) as u64 });
    }
    if expected < data_bytes {
        return Err(SafetensorsError::Trailing { extra: data_bytes - expected });
    }
    Ok(tensors)
}

/// The header's bytes, and where the data starts in the file.
fn split_header(file: &[u8]) -> Result<(&[u8], usize), SafetensorsError> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(SafetensorsError::HeaderCutOff { missing: (LENGTH_BYTES - file.len()) as u64 });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_LIMIT {
        return Err(SafetensorsError::HeaderTooLong(length));
    }
    let header = rest
        .get(..length as usize)
        .ok_or_else(|| SafetensorsError::HeaderCutOff { missing: length - rest.len() as u64 })?;
    Ok((header, LENGTH_BYTES + header.len()))
}

fn reject_duplicates(entries: &[(String, Entry)]) -> Result<(), SafetensorsError> {
    let mut names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|twins| twins[0] == twins[1]) {
        Some(twins) => Err(SafetensorsError::Duplicate(twins[0].to_owned())),
        None => Ok(()),
    }
}

/// Bits of a tensor's data by its shape and format, or `None` if they overflow.
fn data_bits(entry: &Entry) -> Option<usize> {
    let elements = entry.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    elements.checked_mul(entry.dtype.bitsize())
}

fn stored_type(dtype: Dtype) -> StoredType {
    match dtype {
        Dtype::F32 => StoredType::Supported(TensorType::F32),
        Dtype::F16 => StoredType::Supported(TensorType::F16),
        Dtype::BF16 => StoredType::Supported(TensorType::BF16),
        other => StoredType::Foreign(Cow::Owned(other.to_string())),
    }
}

/// The header's entries in its own order, duplicates included.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryList;

        impl<'de> Visitor<'de> for EntryList {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntryList)
    }
}
