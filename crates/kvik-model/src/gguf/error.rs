//! What can be wrong with a GGUF file, and where.

use std::fmt;

use crate::quote::Quoted;

/// A GGUF file that cannot be read: the problem, the part of the file and the byte at which it shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} ({place}, byte {offset})")]
pub struct GgufError {
    /// What is wrong and what to do about it.
    pub problem: Problem,
    /// The part of the file that was being read.
    pub place: Place,
    /// Offset in the file, in bytes.
    pub offset: usize,
}

/// A part of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Magic, version and the two counts.
    Header,
    /// The list of key-value pairs.
    Metadata,
    /// The pair with this key.
    Key(String),
    /// The table of tensor names, shapes and offsets.
    TensorTable,
    /// The table's entry for this tensor, or its data.
    Tensor(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "header"),
            Self::Metadata => write!(f, "metadata"),
            Self::Key(key) => write!(f, "metadata key {}", Quoted(key)),
            Self::TensorTable => write!(f, "tensor table"),
            Self::Tensor(name) => write!(f, "tensor {}", Quoted(name)),
        }
    }
}

/// The kinds of damage. Each sentence ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file does not start with the magic number.
    #[error("this is not a GGUF file: it does not start with \"GGUF\"; check the path")]
    NotGguf,
    /// The version is byte-swapped.
    #[error("this is a big-endian GGUF file; convert it to little endian with gguf_convert_endian.py")]
    BigEndian,
    /// A version before 2 or after 3.
    #[error(
        "GGUF version {0} is not supported, only 2 and 3 are; convert the model again with current tools"
    )]
    Version(u32),
    /// Something reaches past the end of the file.
    #[error(
        "{needed} bytes are needed but only {left} are left; the file is cut off or damaged, download it again"
    )]
    CutOff {
        /// Bytes that the value takes.
        needed: u64,
        /// Bytes between its start and the end of the file.
        left: usize,
    },
    /// More pairs, tensors or array elements than the rest of the file can hold.
    #[error(
        "a count of {count} cannot fit in the {left} bytes that are left; the file is damaged, download it again"
    )]
    Count {
        /// The count in the file.
        count: u64,
        /// Bytes between the first element and the end of the file.
        left: usize,
    },
    /// More pairs or tensors than any model has.
    #[error("a count of {count} is above the limit of {limit}; the file is damaged, download it again")]
    TooMany {
        /// The count in the file.
        count: u64,
        /// What Kvik reads at most.
        limit: u64,
    },
    /// A string is not UTF-8.
    #[error("a string is not valid UTF-8; the file is damaged, download it again")]
    Utf8,
    /// A value has a type number that the format does not define.
    #[error("value type {0} does not exist; the file is damaged, download it again")]
    ValueType(u32),
    /// A truth value is neither 0 nor 1.
    #[error("a truth value is {0} instead of 0 or 1; the file is damaged, download it again")]
    Bool(u8),
    /// Arrays in arrays in arrays.
    #[error("arrays are nested more than {0} deep; no model needs that, so the file is not trusted")]
    Nesting(usize),
    /// A key occurs twice.
    #[error("the key occurs twice; the file is damaged, convert the model again")]
    DuplicateKey,
    /// A tensor name occurs twice.
    #[error("the tensor occurs twice; the file is damaged, convert the model again")]
    DuplicateTensor,
    /// The alignment is zero or no unsigned integer.
    #[error("the alignment is {0} instead of a positive 32-bit integer; convert the model again")]
    Alignment(String),
    /// More dimensions than the format allows.
    #[error("{0} dimensions are more than the format's four; the file is damaged, download it again")]
    Dimensions(u32),
    /// The number of elements or bytes does not fit in 64 bits.
    #[error("a tensor of shape {0:?} is larger than memory can be; the file is damaged, download it again")]
    Overflow(Vec<u64>),
    /// The rows are no whole number of blocks.
    #[error(
        "rows of {cols} elements are no multiple of the {block_len} that a {ty} block holds; convert the model again"
    )]
    RowLength {
        /// Elements of a row.
        cols: usize,
        /// Elements of a block.
        block_len: usize,
        /// The tensor's format.
        ty: String,
    },
    /// The data does not start at a multiple of the alignment.
    #[error("the data offset {offset} is no multiple of the alignment {alignment}; convert the model again")]
    Misaligned {
        /// Offset from the start of the data section, in bytes.
        offset: u64,
        /// The file's alignment in bytes.
        alignment: usize,
    },
    /// The data reaches past the end of the file.
    #[error("the file is cut off: at least {missing} bytes are missing at its end; download it again")]
    DataCutOff {
        /// Bytes from the end of the file to the end of the last tensor.
        missing: u64,
    },
    /// Two tensors share bytes.
    #[error("the data overlaps that of tensor {}; the file is damaged, convert the model again", Quoted(.0))]
    Overlap(String),
}
