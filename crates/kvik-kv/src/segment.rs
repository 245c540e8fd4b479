//! A run of cached tokens with one encoding and one position map.
//!
//! Rows are bf16, in tiles of [`TILE_TOKENS`]. An ordinary segment grows at its end and its positions are consecutive;
//! a segment made from chosen rows ([`Segment::from_rows`]) gives every row its own position and may add a bias to its
//! score, the log of how many tokens the row stands for.

use kvik_kernels::attention::{Positions, TILE_TOKENS, Tile};
use kvik_memory::{BlockId, PoolExhausted};

use crate::store::{KvStore, PooledBlock, tile_mut};

/// One cached token of one head.
#[derive(Clone, Copy, Debug)]
pub struct SegmentRow<'a> {
    /// `[key_dim]`, rotated.
    pub key: &'a [f32],
    /// `[value_dim]`.
    pub value: &'a [f32],
    /// Position in the sequence.
    pub position: u32,
    /// Added to the row's attention score.
    pub bias: f32,
}

/// Cached tokens of one layer and KV head.
pub struct Segment {
    pool: usize,
    /// Tiles that were given back from the front: they keep their index.
    dropped: usize,
    blocks: Vec<BlockId>,
    /// Rows, the dropped ones included.
    len: usize,
    positions: RowPositions,
    /// Per row, padded to whole tiles.
    bias: Option<Vec<f32>>,
}

enum RowPositions {
    /// Consecutive, from this one on.
    From(u32),
    /// One per row, padded to whole tiles.
    Each(Vec<u32>),
}

impl Segment {
    /// An empty segment of `layer` whose rows will have consecutive positions from `position` on, with room in its
    /// tables for `capacity_tokens`.
    pub(crate) fn growing(store: &KvStore, layer: usize, position: u32, capacity_tokens: usize) -> Self {
        Self {
            pool: store.pool_of(layer),
            dropped: 0,
            blocks: Vec::with_capacity(capacity_tokens.div_ceil(TILE_TOKENS)),
            len: 0,
            positions: RowPositions::From(position),
            bias: None,
        }
    }

    /// A segment of `layer` made of `rows`, in their order.
    ///
    /// # Errors
    /// [`PoolExhausted`] when the store has too few blocks; it then holds what it held before.
    pub fn from_rows(
        store: &mut KvStore,
        layer: usize,
        rows: &[SegmentRow<'_>],
    ) -> Result<Self, PoolExhausted> {
        let tile = store.layer(layer).tile();
        let mut segment = Self::growing(store, layer, 0, rows.len());
        segment.reserve(store, rows.len())?;
        for (index, row) in rows.iter().enumerate() {
            let block = segment.blocks[index / TILE_TOKENS];
            let (keys, values) = tile_mut(tile, store.blocks_mut(segment.pool).block_mut(block));
            tile.write(keys, values, index % TILE_TOKENS, row.key, row.value);
        }
        let padded = rows.len().next_multiple_of(TILE_TOKENS);
        let mut positions: Vec<u32> = rows.iter().map(|row| row.position).collect();
        positions.resize(padded, u32::MAX);
        segment.positions = RowPositions::Each(positions);
        if rows.iter().any(|row| row.bias != 0.0) {
            let mut bias: Vec<f32> = rows.iter().map(|row| row.bias).collect();
            bias.resize(padded, 0.0);
            segment.bias = Some(bias);
        }
        segment.len = rows.len();
        Ok(segment)
    }

    /// Rows that the segment holds.
    pub fn len(&self) -> usize {
        self.len - self.dropped * TILE_TOKENS
    }

    /// True if it holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes blocks until `rows` more rows fit.
    pub(crate) fn reserve(&mut self, store: &mut KvStore, rows: usize) -> Result<(), PoolExhausted> {
        let had = self.blocks.len();
        while (self.dropped + self.blocks.len()) * TILE_TOKENS < self.len + rows {
            match store.take(self.pool) {
                Ok(block) => self.blocks.push(block),
                Err(full) => {
                    for block in self.blocks.drain(had..) {
                        store.give_back(self.pool, block);
                    }
                    return Err(full);
                }
            }
        }
        Ok(())
    }

    /// The block that row `index` lies in, counted with the dropped rows.
    pub(crate) fn block_of(&self, index: usize) -> BlockId {
        self.blocks[index / TILE_TOKENS - self.dropped]
    }

    /// Row index, counted with the dropped rows, that the next appended row gets.
    pub(crate) fn end(&self) -> usize {
        self.len
    }

    pub(crate) fn grow(&mut self, rows: usize) {
        self.len += rows;
    }

    /// One past the index of the last tile with rows.
    pub(crate) fn tiles(&self) -> usize {
        self.len.div_ceil(TILE_TOKENS)
    }

    /// Tiles that were given back from the front.
    pub(crate) fn dropped_tiles(&self) -> usize {
        self.dropped
    }

    pub(crate) fn tile<'a>(&'a self, store: &'a KvStore, index: usize) -> Option<Tile<'a>> {
        let block = *self.blocks.get(index.checked_sub(self.dropped)?)?;
        let (keys, values) = store.tile(self.pool, block);
        let start = index * TILE_TOKENS;
        Some(Tile {
            keys,
            values,
            len: (self.len - start).min(TILE_TOKENS),
            positions: match &self.positions {
                RowPositions::From(position) => Positions::From(position + start as u32),
                RowPositions::Each(positions) => Positions::Each(&positions[start..start + TILE_TOKENS]),
            },
            bias: self.bias.as_ref().map(|bias| &bias[start..start + TILE_TOKENS]),
        })
    }

    /// Gives back whole tiles whose positions all lie before `position`.
    pub(crate) fn drop_before(&mut self, store: &mut KvStore, position: u32) {
        let RowPositions::From(start) = self.positions else { return };
        let tiles = (position.saturating_sub(start) as usize / TILE_TOKENS).min(self.tiles());
        let drop = tiles.saturating_sub(self.dropped).min(self.blocks.len());
        for block in self.blocks.drain(..drop) {
            store.give_back(self.pool, block);
        }
        self.dropped += drop;
    }

    /// Forgets the rows at `position` and later, and gives their blocks back. False if it cannot: the rows' positions
    /// are not consecutive and some lie beyond, or rows before `needed_from` were already dropped.
    pub(crate) fn truncate(&mut self, store: &mut KvStore, position: u32, needed_from: u32) -> bool {
        match &self.positions {
            RowPositions::Each(positions) => positions[..self.len].iter().all(|&p| p < position),
            RowPositions::From(start) => {
                if self.dropped > 0 && needed_from < start + (self.dropped * TILE_TOKENS) as u32 {
                    return false;
                }
                self.len = self.len.min(position.saturating_sub(*start) as usize);
                let keep = self.tiles().saturating_sub(self.dropped);
                for block in self.blocks.drain(keep..) {
                    store.give_back(self.pool, block);
                }
                true
            }
        }
    }

    /// Takes all blocks out, for the store's return list, and becomes an empty segment that grows from position 0.
    pub(crate) fn take_blocks(&mut self) -> impl Iterator<Item = PooledBlock> {
        let pool = self.pool;
        self.len = 0;
        self.dropped = 0;
        self.positions = RowPositions::From(0);
        self.bias = None;
        self.blocks.drain(..).map(move |block| (pool, block))
    }

    pub(crate) fn used_bytes(&self, store: &KvStore) -> usize {
        self.blocks.len() * store.block_bytes(self.pool)
    }
}
