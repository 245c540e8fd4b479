//! A tensor in a model file: what the file says of it, and its bytes.

use std::{borrow::Cow, fmt, ops::Range};

use half::{bf16, f16};
use kvik_kernels::quant::TensorType;

/// What a model file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its format.
    pub ty: StoredType,
    /// Its sizes, outermost first: `[rows, cols]` for a matrix.
    pub shape: Vec<usize>,
    /// Where its data lies in the file, or `None` if the format is not known well enough to say.
    pub range: Option<Range<usize>>,
}

impl TensorInfo {
    /// Bytes of its data, or `None` if the format is not known well enough to say.
    pub fn bytes(&self) -> Option<usize> {
        self.range.as_ref().map(|range| range.len())
    }
}

/// Format of a tensor in a file, whether or not Kvik can run it. Displays as the format's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredType {
    /// A format that the kernels read.
    Supported(TensorType),
    /// The name of any other format.
    Foreign(Cow<'static, str>),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Supported(ty) => write!(f, "{ty}"),
            Self::Foreign(name) => write!(f, "{name}"),
        }
    }
}

/// A tensor's data in its file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its format.
    pub ty: TensorType,
    /// Its sizes, outermost first: `[rows, cols]` for a matrix.
    pub shape: &'a [usize],
    /// Its data: `rows() × row_bytes()` bytes, at any address.
    pub bytes: &'a [u8],
}

impl<'a> Tensor<'a> {
    /// Length of the innermost dimension, along which blocks run. A scalar has 1.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: all dimensions but the innermost. A vector is one row.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.bytes.len().checked_div(self.rows()).unwrap_or(0)
    }

    /// The bytes of the rows in `rows`, as far as they exist.
    pub fn row_range(&self, rows: Range<usize>) -> &'a [u8] {
        let byte = |row: usize| row.min(self.rows()) * self.row_bytes();
        self.bytes.get(byte(rows.start)..byte(rows.end)).unwrap_or_default()
    }

    /// The elements as `f32`, for norms, biases and other small tensors. `None` if the format is quantised.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let (pairs, _) = self.bytes.as_chunks::<2>();
        Some(match self.ty {
            TensorType::F32 => self.bytes.as_chunks().0.iter().map(|&le| f32::from_le_bytes(le)).collect(),
            TensorType::F16 => pairs.iter().map(|&le| f16::from_le_bytes(le).to_f32()).collect(),
            TensorType::BF16 => pairs.iter().map(|&le| bf16::from_le_bytes(le).to_f32()).collect(),
            _ => return None,
        })
    }
}
