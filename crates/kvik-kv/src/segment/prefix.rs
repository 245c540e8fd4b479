//! The first rows of a segment, held a second time.

use kvik_kernels::attention::TILE_TOKENS;

use super::{KeyRotation, Plane, RowPositions, Segment, blocks};
use crate::store::{Block, KvStore};

/// The first tile that the queries after `len` tokens see.
fn first_tile(len: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (len + 1).saturating_sub(window)) / TILE_TOKENS
}

impl Segment {
    /// True if its rows are as they were appended, from the first position on.
    pub(crate) fn is_plain(&self) -> bool {
        let columns = &self.columns;
        let whole = |plane: &Plane| plane.rows.is_some() && plane.encoded.is_none();
        matches!(columns.positions, RowPositions::From(0))
            && columns.bias.is_none()
            && columns.magnitudes.is_none()
            && columns.shifts.is_none()
            && matches!(self.rotation, KeyRotation::Stored)
            && self.tiles.iter().flatten().all(whole)
    }

    /// True if it has all rows that a query behind the first `len` tokens sees.
    pub(crate) fn reaches(&self, len: usize, window: Option<usize>) -> bool {
        len <= self.len && self.dropped <= first_tile(len, window)
    }

    /// What a query behind the first `len` rows of a plain segment sees, with one more holder for each block. Full tiles that
    /// `base` has are taken from there: the same rows, held by more. There is room in its tables for `capacity_tokens`.
    pub(crate) fn prefix(
        &self,
        store: &mut KvStore,
        len: usize,
        capacity_tokens: usize,
        base: Option<&Self>,
    ) -> Self {
        let end = len.div_ceil(TILE_TOKENS);
        let first = first_tile(len, store.layer(self.layer).window).min(end);
        let mut prefix = Self::growing(self.layer, 0, 0);
        (prefix.dropped, prefix.len) = (first, len);
        prefix.tiles.reserve_exact(capacity_tokens.max(len).div_ceil(TILE_TOKENS) - first);
        for tile in first..end {
            let full = (tile + 1) * TILE_TOKENS;
            let theirs = base.filter(|base| full <= base.len.min(len)).and_then(|base| base.planes(tile));
            let planes = theirs.or_else(|| self.planes(tile)).expect("the segment reaches");
            prefix.tiles.push(planes.clone());
        }
        for block in blocks(&prefix.tiles) {
            store.share(block);
        }
        prefix
    }

    /// Bytes of the table of its tiles, which lies beside the blocks.
    pub(crate) fn table_bytes(&self) -> usize {
        self.tiles.capacity() * size_of::<[Plane; 2]>()
    }

    /// Its blocks that `base` does not have at the same place.
    pub(crate) fn blocks_beside<'a>(&'a self, base: Option<&'a Self>) -> impl Iterator<Item = Block> + 'a {
        let tiles = self.tiles.iter().enumerate();
        tiles.flat_map(move |(index, planes)| {
            let theirs = base.and_then(|base| base.planes(self.dropped + index));
            let known = move |block: &Block| {
                theirs.is_some_and(|planes| planes.iter().flat_map(Plane::blocks).any(|b| b == *block))
            };
            planes.iter().flat_map(Plane::blocks).filter(move |block| !known(block))
        })
    }
}
