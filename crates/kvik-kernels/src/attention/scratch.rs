//! Memory that attention keeps from call to call, so that decoding allocates none.

use std::{
    ops::Range,
    sync::{Mutex, atomic::AtomicUsize},
};

#[cfg(target_arch = "x86_64")]
use super::amx::Blocks;
use super::{
    AttentionShape, Partials, TileBuffer,
    attend::CUT_ROWS,
    items::{Kernel, SequenceRows, least_items},
};
use crate::{Isa, Phase, disjoint::Disjoint};

/// Space that [`super::attend`] reuses from call to call.
pub struct AttentionScratch {
    pub(super) threads: Vec<Mutex<ThreadScratch>>,
    /// Query rows of each sequence of the batch, and how they are folded.
    pub(super) sequences: Vec<SequenceRows>,
    /// Partials of items that were cut along the cache.
    pub(super) spans: PartialRows,
    /// Of each such item, the spans that are not folded yet.
    pub(super) unfinished: Vec<AtomicUsize>,
}

#[derive(Default)]
pub(super) struct ThreadScratch {
    pub(super) packed: PackedRows,
    pub(super) piece: PartialRows,
    pub(super) total: PartialRows,
    pub(super) decoded: TileBuffer,
}

/// An item's queries, as its kernel wants them.
#[derive(Default)]
pub(super) struct PackedRows {
    pub(super) pairs: Vec<u32>,
    pub(super) positions: Vec<u32>,
    #[cfg(target_arch = "x86_64")]
    pub(super) blocks: Blocks,
}

/// Owned storage of [`Partials`].
#[derive(Default)]
pub(super) struct PartialRows {
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
}

impl PartialRows {
    /// Sets memory aside, without touching it.
    fn reserve(&mut self, rows: usize, stride: usize) {
        for (column, len) in [(&mut self.max, rows), (&mut self.sum, rows), (&mut self.acc, rows * stride)] {
            column.reserve_exact(len);
        }
    }

    pub(super) fn resize(&mut self, rows: usize, stride: usize) {
        for (column, len) in [(&mut self.max, rows), (&mut self.sum, rows), (&mut self.acc, rows * stride)] {
            if column.len() < len {
                column.resize(len, 0.0);
            }
        }
    }

    pub(super) fn rows(&mut self, rows: Range<usize>, stride: usize) -> Partials<'_> {
        Partials {
            max: &mut self.max[rows.clone()],
            sum: &mut self.sum[rows.clone()],
            acc: &mut self.acc[rows.start * stride..rows.end * stride],
        }
    }
}

impl AttentionScratch {
    /// Scratch for `threads` threads, heads of `shape` and caches of up to `tokens` tokens.
    pub fn new(threads: usize, shape: &AttentionShape, tokens: usize) -> Self {
        let mut scratch = Self {
            threads: (0..threads).map(|_| Mutex::default()).collect(),
            sequences: Vec::new(),
            spans: PartialRows::default(),
            unfinished: Vec::with_capacity(least_items(threads)),
        };
        scratch.fit(shape);
        // The system gives memory as it is touched: a long context costs nothing until its cache is long.
        let spans = tokens.div_ceil(super::TILE_TOKENS * Kernel::Rows.span_tiles());
        let rows = spans * CUT_ROWS.max(shape.group()) * least_items(threads);
        scratch.spans.reserve(rows, shape.tile.value_stride());
        scratch
    }

    /// Makes room for items of another layer's shape.
    pub(super) fn fit(&mut self, shape: &AttentionShape) {
        let best = Kernel::of(Isa::detect(), Phase::Prefill);
        let rows = best.item_rows().max(Kernel::Rows.item_rows()).max(shape.group());
        let stride = shape.tile.value_stride();
        for thread in &mut self.threads {
            let thread = thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            let PackedRows { pairs, positions, .. } = &mut thread.packed;
            let few = Kernel::Rows.item_rows().max(shape.group());
            pairs.resize(pairs.len().max(few * shape.tile.key_pairs()), 0);
            positions.resize(positions.len().max(few), 0);
            #[cfg(target_arch = "x86_64")]
            if best.in_blocks() {
                thread.packed.blocks.reserve(rows, shape.tile);
            }
            thread.piece.resize(rows, stride);
            thread.total.resize(rows, stride);
        }
    }
}

/// Partials that several threads fill, each its own rows.
pub(super) struct DisjointRows<'a> {
    max: Disjoint<'a, f32>,
    sum: Disjoint<'a, f32>,
    acc: Disjoint<'a, f32>,
    stride: usize,
}

impl<'a> DisjointRows<'a> {
    pub(super) fn new(partials: &'a mut PartialRows, stride: usize) -> Self {
        let PartialRows { max, sum, acc } = partials;
        Self { max: Disjoint::new(max), sum: Disjoint::new(sum), acc: Disjoint::new(acc), stride }
    }

    /// # Safety
    /// No two results that live at the same time share a row.
    pub(super) unsafe fn rows(&self, rows: Range<usize>) -> Partials<'_> {
        let elements = rows.start * self.stride..rows.end * self.stride;
        // SAFETY: disjoint rows are disjoint parts of each column.
        unsafe {
            Partials {
                max: self.max.slice(rows.clone()),
                sum: self.sum.slice(rows),
                acc: self.acc.slice(elements),
            }
        }
    }
}
