//! A weight matrix in the kernels' layout, and its incremental construction.

use std::io;

use kvik_memory::{Buffer, Owner};

use super::{lanes::LANES, pack, panel};
use crate::{ThreadPool, disjoint::Disjoint, quant::TensorType};

/// A weight matrix `[out_features, in_features]`, packed for the kernels.
///
/// The stored numbers are those of the file, bit by bit; only their order is different. Quantised formats take as much
/// memory as the file (Q4_K and Q5_K 3 % more, Q6_K 1 % more), with `out_features` rounded up to a multiple of 16.
pub struct PackedMatrix {
    ty: TensorType,
    out_features: usize,
    in_features: usize,
    panel_bytes: usize,
    panels: Buffer,
}

/// Why a matrix cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A row is not made of whole blocks.
    #[error("a row of {in_features} elements is no whole number of {ty} blocks of {}", ty.block_len())]
    RaggedRow {
        /// The matrix's format.
        ty: TensorType,
        /// Its row length.
        in_features: usize,
    },
    /// The matrix does not fit the address space.
    #[error("a matrix of {out_features} x {in_features} elements is too large for this machine")]
    TooLarge {
        /// Rows asked for.
        out_features: usize,
        /// Columns asked for.
        in_features: usize,
    },
    /// The system refuses the memory.
    #[error("no memory for {bytes} bytes of packed weights")]
    NoMemory {
        /// Size of the refused reservation.
        bytes: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// The pushed bytes are not whole rows, or more rows than announced.
    #[error("{got} bytes pushed where rows of {row_bytes} bytes, at most {missing} of them, were due")]
    WrongRows {
        /// Bytes pushed.
        got: usize,
        /// Bytes of a row.
        row_bytes: usize,
        /// Rows that the matrix still lacks.
        missing: usize,
    },
    /// `finish` before all rows were pushed.
    #[error("the matrix still lacks {missing} of its {out_features} rows")]
    MissingRows {
        /// Rows not pushed.
        missing: usize,
        /// Rows of the matrix.
        out_features: usize,
    },
}

impl PackedMatrix {
    /// Starts a matrix of `out_features` rows of `in_features` elements each, stored as `ty`.
    ///
    /// # Errors
    /// [`PackError::RaggedRow`], [`PackError::TooLarge`] or [`PackError::NoMemory`].
    pub fn builder(ty: TensorType, out_features: usize, in_features: usize) -> Result<Builder, PackError> {
        let ragged = PackError::RaggedRow { ty, in_features };
        if !in_features.is_multiple_of(ty.block_len()) {
            return Err(ragged);
        }
        let too_large = || PackError::TooLarge { out_features, in_features };
        let row_bytes = ty.bytes_for(in_features).ok_or_else(too_large)?;
        let panel_bytes = panel::panel_bytes(ty, in_features).ok_or_else(too_large)?;
        let bytes = out_features.div_ceil(LANES).checked_mul(panel_bytes).ok_or_else(too_large)?;
        let panels =
            Buffer::zeroed(bytes, Owner::Weights).map_err(|source| PackError::NoMemory { bytes, source })?;
        let matrix = Self { ty, out_features, in_features, panel_bytes, panels };
        Ok(Builder { matrix, row_bytes, rows_done: 0, pending: Vec::new() })
    }

    /// Packs a whole matrix at once.
    ///
    /// # Errors
    /// As [`Self::builder`], [`Builder::push_rows`] and [`Builder::finish`].
    pub fn pack(
        pool: &ThreadPool,
        ty: TensorType,
        out_features: usize,
        in_features: usize,
        bytes: &[u8],
    ) -> Result<Self, PackError> {
        let mut builder = Self::builder(ty, out_features, in_features)?;
        builder.push_rows(pool, bytes)?;
        builder.finish()
    }

    /// The stored format.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Rows of the matrix: length of a product.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the matrix: length of an activation row.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Bytes that the packed matrix takes.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }

    /// Panels of 16 output features, the last one padded.
    pub(super) fn panels(&self) -> usize {
        self.out_features.div_ceil(LANES)
    }

    /// Decodes row `row` (for instance one token's embedding) into `out`, `[in_features]`: exactly the numbers of the file.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.out_features, "row {row} of a matrix with {} rows", self.out_features);
        assert_eq!(out.len(), self.in_features, "a row has in_features elements");
        pack::unpack_row(self.ty, self.panel(row / LANES), row % LANES, out);
    }

    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        &self.panels[panel * self.panel_bytes..][..self.panel_bytes]
    }
}

/// Takes the rows of a matrix in order, in pieces of any number of rows, so that a loader can give the file's pages
/// back as it goes.
pub struct Builder {
    matrix: PackedMatrix,
    row_bytes: usize,
    /// Rows packed; a multiple of 16 until the end.
    rows_done: usize,
    /// Fewer than 16 rows that wait for the rest of their panel.
    pending: Vec<u8>,
}

impl Builder {
    /// Packs the next rows: `bytes` are whole rows in the stored format.
    ///
    /// # Errors
    /// [`PackError::WrongRows`] if `bytes` are no whole rows or more than the matrix lacks.
    pub fn push_rows(&mut self, pool: &ThreadPool, mut bytes: &[u8]) -> Result<(), PackError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let missing = self.missing();
        if self.row_bytes == 0
            || !bytes.len().is_multiple_of(self.row_bytes)
            || bytes.len() / self.row_bytes > missing
        {
            return Err(PackError::WrongRows { got: bytes.len(), row_bytes: self.row_bytes, missing });
        }
        let panel_rows_bytes = LANES * self.row_bytes;
        if !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(panel_rows_bytes - self.pending.len()));
            self.pending.extend_from_slice(head);
            bytes = rest;
            if self.pending.len() == panel_rows_bytes {
                let full = std::mem::take(&mut self.pending);
                self.pack_panels(pool, &full);
            }
        }
        let whole = bytes.len() / panel_rows_bytes * panel_rows_bytes;
        self.pack_panels(pool, &bytes[..whole]);
        self.pending.extend_from_slice(&bytes[whole..]);
        Ok(())
    }

    /// The finished matrix.
    ///
    /// # Errors
    /// [`PackError::MissingRows`] if fewer rows than announced were pushed.
    pub fn finish(mut self) -> Result<PackedMatrix, PackError> {
        if self.row_bytes > 0 && self.missing() > 0 {
            let (missing, out_features) = (self.missing(), self.matrix.out_features);
            return Err(PackError::MissingRows { missing, out_features });
        }
        let rest = std::mem::take(&mut self.pending);
        self.pack_panels(&ThreadPool::new(1), &rest);
        Ok(self.matrix)
    }

    fn missing(&self) -> usize {
        let pending = self.pending.len().checked_div(self.row_bytes).unwrap_or(0);
        self.matrix.out_features - self.rows_done - pending
    }

    /// Packs panels from their rows; only the matrix's last panel may have fewer than 16.
    fn pack_panels(&mut self, pool: &ThreadPool, rows: &[u8]) {
        if rows.is_empty() {
            return;
        }
        let (ty, row_bytes, panel_bytes) = (self.matrix.ty, self.row_bytes, self.matrix.panel_bytes);
        let first = self.rows_done / LANES * panel_bytes;
        let panels = Disjoint::new(&mut self.matrix.panels[first..]);
        let panel_rows = LANES * row_bytes;
        // Pieces of some hundred kilobytes: small enough to balance, large enough to be read in a stream.
        let grain = (256 << 10) / panel_rows;
        pool.for_each_piece(rows.len().div_ceil(panel_rows), grain, |piece| {
            for index in piece {
                let rows = &rows[index * panel_rows..rows.len().min((index + 1) * panel_rows)];
                // SAFETY: each panel index is handed to one piece only.
                let panel = unsafe { panels.slice(index * panel_bytes..(index + 1) * panel_bytes) };
                pack::pack_panel(ty, rows, row_bytes, panel);
            }
        });
        self.rows_done += rows.len() / row_bytes;
    }
}
