//! A run of cached tokens of one layer and KV head.
//!
//! Rows lie in tiles of [`TILE_TOKENS`]. A tile has a plane of keys and one of values; the first rows of a plane may be
//! encoded, the rest are bf16 ([`Plane`]). An ordinary segment grows at its end and its positions are consecutive; once rows
//! were chosen or dropped, every row has its own position. A row may add a bias to its score, the log of how many tokens it
//! stands for, and may have its magnitudes stored apart from its direction, which other layers may then share.

mod columns;
mod export;
mod prefix;
mod rewrite;

use std::{ops::Range, sync::Arc};

use kvik_kernels::attention::{
    Codec, PlaneKind, Positions, Rotary, RowScales, StoredPlane, StoredTile, TILE_TOKENS, TileBuffer, Turns,
};

pub use self::columns::Magnitudes;
use self::columns::{Columns, RowPositions, Shifts};
pub(crate) use self::export::{Known, Limits, Written};
use crate::{
    spilled::{Glance, ReadBlocks},
    store::{Block, CacheError, KvStore},
    tally::Encoding,
};

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
    layer: usize,
    /// Tiles that were given back from the front: they keep their index.
    dropped: usize,
    tiles: Vec<[Plane; 2]>,
    /// Rows, the dropped ones included.
    len: usize,
    columns: Columns,
    rotation: KeyRotation,
}

/// Whether stored keys are rotated.
#[derive(Clone, Debug, Default)]
pub enum KeyRotation {
    /// They are.
    #[default]
    Stored,
    /// They turn when they are read, each by its position.
    AtPosition(Arc<Rotary>),
}

/// Keys or values of a tile.
#[derive(Clone, Default)]
pub(crate) struct Plane {
    /// bf16 rows, those that are encoded left out.
    pub(crate) rows: Option<Block>,
    pub(crate) encoded: Option<EncodedRows>,
}

/// The first rows of a plane, encoded.
#[derive(Clone)]
pub(crate) struct EncodedRows {
    pub(crate) codec: Arc<dyn Codec>,
    pub(crate) block: Block,
    pub(crate) rows: usize,
}

const PLANES: [PlaneKind; 2] = [PlaneKind::Keys, PlaneKind::Values];

impl Segment {
    /// An empty segment of `layer` whose rows will have consecutive positions from `position` on, with room in its
    /// tables for `capacity_tokens`.
    pub(crate) fn growing(layer: usize, position: u32, capacity_tokens: usize) -> Self {
        Self {
            layer,
            dropped: 0,
            tiles: Vec::with_capacity(capacity_tokens.div_ceil(TILE_TOKENS)),
            len: 0,
            columns: Columns::from(position),
            rotation: KeyRotation::Stored,
        }
    }

    /// A segment of `layer` made of `rows`, in their order.
    ///
    /// # Errors
    /// [`CacheError::Full`] when the store has too few blocks; it then holds what it held before.
    pub fn from_rows(store: &mut KvStore, layer: usize, rows: &[SegmentRow<'_>]) -> Result<Self, CacheError> {
        let mut segment = Self::growing(layer, 0, rows.len());
        segment.extend(store, rows)?;
        Ok(segment)
    }

    /// Puts `rows` behind the others.
    ///
    /// # Errors
    /// [`CacheError::Full`] when the store has too few blocks; the segment is then as it was.
    pub(crate) fn extend(&mut self, store: &mut KvStore, rows: &[SegmentRow<'_>]) -> Result<(), CacheError> {
        assert_eq!(self.dropped, 0, "rows of sliding windows follow each other");
        self.reserve(store, rows.len())?;
        let tile = store.layer(self.layer).tile();
        let first = self.len;
        for (index, row) in (first..).zip(rows) {
            for (plane, numbers) in PLANES.into_iter().zip([row.key, row.value]) {
                let block = self.plane(index, plane).rows.expect("reserved planes have rows");
                let len = tile.plane(plane).1;
                tile.write_row(plane, store.rows_mut(block, len), index % TILE_TOKENS, numbers);
            }
        }
        let mut positions: Vec<u32> = (0..first).map(|row| self.position(row)).collect();
        positions.extend(rows.iter().map(|row| row.position));
        let mut bias: Vec<f32> = (0..first).map(|row| self.bias(row)).collect();
        bias.extend(rows.iter().map(|row| row.bias));
        self.len = first + rows.len();
        self.set_positions(positions);
        if bias.iter().any(|&bias| bias != 0.0) {
            self.set_bias(bias);
        }
        if let Some(Shifts { by, .. }) = &mut self.columns.shifts {
            by.resize(self.len.next_multiple_of(TILE_TOKENS), 0);
        }
        Ok(())
    }

    /// Gives every row its own position.
    pub(crate) fn set_positions(&mut self, positions: Vec<u32>) {
        self.columns.set_positions(self.len, positions);
    }

    /// Gives every row a bias.
    pub(crate) fn set_bias(&mut self, mut bias: Vec<f32>) {
        bias.resize(self.len.next_multiple_of(TILE_TOKENS), 0.0);
        self.columns.bias = Some(bias);
    }

    /// Says that the planes hold directions, and how long each row's key and value are.
    pub(crate) fn set_magnitudes(&mut self, mut magnitudes: Magnitudes) {
        let padded = self.len.next_multiple_of(TILE_TOKENS);
        magnitudes.keys.resize(padded, 0.0);
        magnitudes.values.resize(padded, 0.0);
        self.columns.magnitudes = Some(magnitudes);
    }

    /// Says by how many positions each row's key turns beyond its own; none if that is 0 for all.
    pub(crate) fn set_shifts(&mut self, turns: &Arc<Turns>, mut by: Vec<u32>) {
        by.resize(self.len.next_multiple_of(TILE_TOKENS), 0);
        let turned = by.iter().any(|&by| by > 0);
        self.columns.shifts = turned.then(|| Shifts { turns: Arc::clone(turns), by });
    }

    /// What turns keys beyond their own positions, if any are.
    pub(crate) fn turns(&self) -> Option<&Arc<Turns>> {
        self.columns.shifts.as_ref().map(|shifts| &shifts.turns)
    }

    /// Parts with the first `tiles` tiles, which must be full: this segment goes on behind them.
    pub(crate) fn split_front(&mut self, tiles: usize) -> Self {
        let rows = tiles * TILE_TOKENS;
        assert!(self.dropped == 0 && rows <= self.len, "full tiles that the segment still has");
        let rest = self.tiles.split_off(tiles);
        let mut front = Self::growing(self.layer, 0, 0);
        (front.tiles, front.len) = (std::mem::replace(&mut self.tiles, rest), rows);
        front.rotation = self.rotation.clone();
        self.len -= rows;
        front.columns = self.columns.split_front(rows);
        front
    }

    /// Puts encoded keys in the place of those that the tiles have: a block for each tile.
    pub(crate) fn replace_keys(
        &mut self,
        store: &mut KvStore,
        codec: &Arc<dyn Codec>,
        blocks: &[Block],
        rotation: KeyRotation,
    ) {
        assert_eq!(blocks.len(), self.tiles.len());
        for (index, (planes, &block)) in self.tiles.iter_mut().zip(blocks).enumerate() {
            let rows = (self.len - index * TILE_TOKENS).min(TILE_TOKENS);
            let encoded = Some(EncodedRows { codec: Arc::clone(codec), block, rows });
            let keys = &mut planes[PlaneKind::Keys as usize];
            let old = std::mem::replace(keys, Plane { rows: None, encoded });
            old.blocks().for_each(|block| store.release(block));
        }
        self.rotation = rotation;
    }

    /// Blocks of the tile that a row lies in, ready to be written: of a segment without encoded rows.
    pub(crate) fn own(&mut self, store: &mut KvStore, row: usize) -> Result<[Block; 2], CacheError> {
        let planes = &mut self.tiles[row / TILE_TOKENS];
        let mut owned = |plane: PlaneKind| -> Result<Block, CacheError> {
            let rows = &mut planes[plane as usize].rows;
            let block = store.owned(rows.expect("no row is encoded"))?;
            *rows = Some(block);
            Ok(block)
        };
        Ok([owned(PlaneKind::Keys)?, owned(PlaneKind::Values)?])
    }

    /// Gives a row of a segment whose rows have their own positions another one.
    pub(crate) fn set_position(&mut self, row: usize, position: u32) {
        match &mut self.columns.positions {
            RowPositions::Each(positions) => positions[row] = position,
            RowPositions::From(_) => panic!("rows with positions in a row"),
        }
    }

    /// A plane of the tile that a row lies in, as it is stored.
    pub(crate) fn stored<'a>(
        &'a self,
        blocks: &'a impl ReadBlocks,
        plane: PlaneKind,
        row: usize,
    ) -> StoredPlane<'a> {
        let len = blocks.store().layer(self.layer).tile().plane(plane).1;
        self.planes_of(row)[plane as usize].stored(blocks, len)
    }

    /// Whether its keys are rotated as they are stored.
    pub(crate) fn rotation(&self) -> &KeyRotation {
        &self.rotation
    }

    /// Rows that the segment holds.
    pub fn len(&self) -> usize {
        self.len - self.dropped * TILE_TOKENS
    }

    /// True if it holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Position of a row.
    pub fn position(&self, row: usize) -> u32 {
        self.columns.position(self.dropped * TILE_TOKENS + row)
    }

    /// Positions of all rows.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|row| self.position(row))
    }

    /// Bias of a row.
    pub fn bias(&self, row: usize) -> f32 {
        self.columns.bias.as_ref().map_or(0.0, |bias| bias[self.dropped * TILE_TOKENS + row])
    }

    /// The magnitudes of the rows, if they are stored apart.
    pub fn magnitudes(&self) -> Option<&Magnitudes> {
        self.columns.magnitudes.as_ref()
    }

    /// Takes the magnitudes out: the planes are numbers like any others until they are set again.
    pub(crate) fn take_magnitudes(&mut self) -> Magnitudes {
        self.columns.magnitudes.take().unwrap_or_default()
    }

    /// Rows of a plane that are encoded: all of the first tiles, and the beginning of one.
    pub fn encoded_rows(&self, plane: PlaneKind) -> usize {
        let encoded = |planes: &[Plane; 2]| planes[plane as usize].encoded.as_ref().map_or(0, |e| e.rows);
        let rows: usize = self.tiles.iter().map(encoded).sum();
        rows.min(self.len())
    }

    /// The encoding that a row of a plane has; `None` for bf16.
    pub fn encoding(&self, plane: PlaneKind, row: usize) -> Option<&Arc<dyn Codec>> {
        let encoded = self.tiles[row / TILE_TOKENS][plane as usize].encoded.as_ref()?;
        (row % TILE_TOKENS < encoded.rows).then_some(&encoded.codec)
    }

    /// Takes blocks until `rows` more rows fit, and copies a shared block that they would be written to.
    pub(crate) fn reserve(&mut self, store: &mut KvStore, rows: usize) -> Result<(), CacheError> {
        if rows == 0 {
            return Ok(());
        }
        if !self.len.is_multiple_of(TILE_TOKENS)
            && let Some(last) = self.tiles.len().checked_sub(1)
        {
            let encoding = self.encoding_of_rows();
            for plane in PLANES {
                let class = store.class_of(self.layer, plane);
                let whole_groups = self.tiles[last][plane as usize]
                    .encoded
                    .as_ref()
                    .is_none_or(|encoded| encoded.rows.is_multiple_of(encoded.codec.group_rows(plane)));
                if !whole_groups {
                    self.decode_plane(store, last, plane)?;
                }
                let rows = &mut self.tiles[last][plane as usize].rows;
                *rows = Some(match *rows {
                    Some(block) => store.owned(block)?,
                    // What was cut off an encoded tile grows on in bf16.
                    None => store.take(class, encoding)?,
                });
            }
        }
        let had = self.tiles.len();
        while (self.dropped + self.tiles.len()) * TILE_TOKENS < self.len + rows {
            match self.new_tile(store) {
                Ok(tile) => self.tiles.push(tile),
                Err(full) => {
                    self.tiles.drain(had..).for_each(|tile| release(store, tile));
                    return Err(full);
                }
            }
        }
        if let RowPositions::Each(positions) = &mut self.columns.positions {
            positions.resize((self.len + rows).next_multiple_of(TILE_TOKENS), u32::MAX);
        }
        Ok(())
    }

    fn new_tile(&self, store: &mut KvStore) -> Result<[Plane; 2], CacheError> {
        let [keys, values] = PLANES.map(|plane| store.class_of(self.layer, plane));
        let encoding = self.encoding_of_rows();
        let keys = store.take(keys, encoding)?;
        match store.take(values, encoding) {
            Ok(values) => Ok([keys, values].map(|block| Plane { rows: Some(block), encoded: None })),
            Err(full) => {
                store.release(keys);
                Err(full.into())
            }
        }
    }

    /// What its bf16 rows count as.
    fn encoding_of_rows(&self) -> Encoding {
        if self.columns.magnitudes.is_some() { Encoding::MERGED_LAYERS } else { Encoding::BF16 }
    }

    /// Counts its bf16 rows as `encoding`.
    pub(crate) fn count_rows_as(&self, store: &mut KvStore, encoding: Encoding) {
        for block in self.tiles.iter().flatten().filter_map(|plane| plane.rows) {
            store.relabel(block, encoding);
        }
    }

    /// The plane that row `index` lies in, counted with the dropped rows.
    fn plane(&self, index: usize, plane: PlaneKind) -> &Plane {
        &self.tiles[index / TILE_TOKENS - self.dropped][plane as usize]
    }

    /// Blocks of keys and values that row `index`, which room was reserved for, is written to; counted with the dropped rows.
    pub(crate) fn blocks_of(&self, index: usize) -> [Block; 2] {
        PLANES.map(|plane| self.plane(index, plane).rows.expect("room was reserved"))
    }

    /// Row index, counted with the dropped rows, that the next appended row gets.
    pub(crate) fn end(&self) -> usize {
        self.len
    }

    /// Counts in `rows` rows that were written, the first at `position`.
    pub(crate) fn grow(&mut self, rows: usize, position: u32) {
        self.columns.grow(self.len, rows, position);
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

    /// The planes of all tiles that were not given back, those that room was reserved in included.
    pub(crate) fn all_planes(&self) -> impl Iterator<Item = &[Plane; 2]> + Clone {
        self.tiles.iter()
    }

    /// The planes of the tile that a row lies in.
    pub(crate) fn planes_of(&self, row: usize) -> &[Plane; 2] {
        &self.tiles[row / TILE_TOKENS]
    }

    /// The planes of a tile, if it was not given back.
    pub(crate) fn planes(&self, index: usize) -> Option<&[Plane; 2]> {
        self.tiles.get(index.checked_sub(self.dropped)?)
    }

    pub(crate) fn tile<'a>(&'a self, blocks: &'a impl ReadBlocks, index: usize) -> Option<StoredTile<'a>> {
        let planes = self.planes(index)?;
        let shape = blocks.store().layer(self.layer).tile();
        let [keys, values] = PLANES.map(|plane| planes[plane as usize].stored(blocks, shape.plane(plane).1));
        let start = index * TILE_TOKENS;
        let len = (self.len - start).min(TILE_TOKENS);
        let rows = start..start + TILE_TOKENS;
        Some(StoredTile {
            keys,
            values,
            len,
            positions: match &self.columns.positions {
                RowPositions::From(position) => Positions::From(position + start as u32),
                RowPositions::Each(positions) => Positions::Each(&positions[rows.clone()]),
            },
            bias: self.columns.bias.as_ref().map(|bias| &bias[rows.clone()]),
            scales: self.columns.magnitudes.as_ref().map(|magnitudes| RowScales {
                keys: &magnitudes.keys[rows.clone()],
                values: &magnitudes.values[rows.clone()],
            }),
            rotation: match &self.rotation {
                KeyRotation::Stored => None,
                KeyRotation::AtPosition(rotary) => Some(rotary),
            },
            shifts: self.columns.shifts.as_ref().map(|shifts| (&*shifts.turns, &shifts.by[rows])),
        })
    }

    /// Reads `rows` of a plane as attention sees them at their positions, into `out` (`[rows, dim]`).
    ///
    /// # Errors
    /// [`CacheError::Spill`] if a row lies in a file and cannot be read; it is zeros then.
    pub(crate) fn read(
        &self,
        store: &KvStore,
        plane: PlaneKind,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), CacheError> {
        let shape = store.layer(self.layer).tile();
        let dim = shape.plane(plane).0;
        let mut buffer = TileBuffer::default();
        let mut out = out.chunks_exact_mut(dim);
        let mut row = self.dropped * TILE_TOKENS + rows.start;
        let end = self.dropped * TILE_TOKENS + rows.end;
        let tiles = (row / TILE_TOKENS..end.div_ceil(TILE_TOKENS)).filter_map(|index| self.planes(index));
        let (glance, failure) = Glance::at(store, tiles.flat_map(|tile| tile[plane as usize].blocks()));
        while row < end {
            let tile = self.tile(&glance, row / TILE_TOKENS).expect("rows that a segment holds have tiles");
            let tile = StoredTile { shifts: None, ..tile }.decode(shape, &mut buffer);
            let (numbers, scales) = match plane {
                PlaneKind::Keys => (tile.keys, tile.scales.map(|scales| scales.keys)),
                PlaneKind::Values => (tile.values, tile.scales.map(|scales| scales.values)),
            };
            let until = end.min((row / TILE_TOKENS + 1) * TILE_TOKENS);
            for row in row..until {
                let out = out.next().expect("there is space for every row");
                shape.read_row(plane, numbers, row % TILE_TOKENS, out);
                if let Some(scales) = scales {
                    out.iter_mut().for_each(|number| *number *= scales[row % TILE_TOKENS]);
                }
            }
            row = until;
        }
        failure.map_or(Ok(()), Err)
    }

    /// The same rows once more; blocks have one more holder.
    pub(crate) fn fork(&self, store: &mut KvStore, capacity_tokens: usize) -> Self {
        let mut tiles = Vec::with_capacity(self.tiles.len().max(capacity_tokens.div_ceil(TILE_TOKENS)));
        tiles.extend(self.tiles.iter().cloned());
        for block in blocks(&tiles) {
            store.share(block);
        }
        Self {
            layer: self.layer,
            dropped: self.dropped,
            tiles,
            len: self.len,
            columns: self.columns.clone(),
            rotation: self.rotation.clone(),
        }
    }

    /// Lets `other`, a segment with as many rows, hold the same planes as this one; what `other` held is given back.
    pub(crate) fn share_planes(&self, store: &mut KvStore, other: &mut Self) {
        assert_eq!(self.len, other.len);
        for block in blocks(&self.tiles) {
            store.share(block);
        }
        let old = std::mem::replace(&mut other.tiles, self.tiles.clone());
        old.into_iter().for_each(|tile| release(store, tile));
    }

    /// Takes all blocks out, for the store's return list, and becomes an empty segment that grows from position 0.
    pub(crate) fn take_blocks(&mut self) -> impl Iterator<Item = Block> {
        self.len = 0;
        self.dropped = 0;
        self.columns = Columns::from(0);
        self.rotation = KeyRotation::Stored;
        self.tiles.drain(..).flat_map(|[keys, values]| keys.blocks().chain(values.blocks()))
    }

    /// Gives all blocks back.
    pub(crate) fn release(mut self, store: &mut KvStore) {
        for block in self.take_blocks() {
            store.release(block);
        }
    }

    /// Bytes of RAM that the blocks take, of which one that several hold counts in equal parts, and what stands beside them per
    /// row.
    pub(crate) fn used_bytes(&self, store: &KvStore) -> usize {
        let in_ram = blocks(&self.tiles).filter(|&block| store.takes_ram(block));
        let blocks: usize = in_ram.map(|block| store.share_bytes(block)).sum();
        blocks + self.columns.bytes()
    }

    /// Bytes that the blocks would take in RAM besides; one that several hold counts in equal parts.
    pub(crate) fn away_bytes(&self, store: &KvStore) -> usize {
        let away = blocks(&self.tiles).filter(|&block| !store.takes_ram(block));
        away.map(|block| store.share_bytes(block)).sum()
    }

    /// Bytes of files that the blocks take; one that several hold counts in equal parts.
    pub(crate) fn file_bytes(&self, store: &KvStore) -> usize {
        blocks(&self.tiles).map(|block| store.spilled.file_bytes_of(block) / store.holders(block)).sum()
    }
}

impl Plane {
    fn stored<'a>(&'a self, blocks: &'a impl ReadBlocks, len: usize) -> StoredPlane<'a> {
        let rows = self.rows.map(|block| blocks.rows(block, len));
        match (&self.encoded, rows) {
            (None, Some(rows)) => StoredPlane::Rows(rows),
            (Some(encoded), rest) => StoredPlane::Encoded {
                codec: &*encoded.codec,
                block: blocks.bytes(encoded.block),
                rows: encoded.rows,
                rest,
            },
            (None, None) => StoredPlane::Rows(&[]),
        }
    }

    /// Its blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block> + Clone + use<> {
        self.rows.into_iter().chain(self.encoded.as_ref().map(|encoded| encoded.block))
    }
}

fn blocks(tiles: &[[Plane; 2]]) -> impl Iterator<Item = Block> + Clone {
    tiles.iter().flatten().flat_map(Plane::blocks)
}

fn release(store: &mut KvStore, tile: [Plane; 2]) {
    for block in tile.iter().flat_map(Plane::blocks) {
        store.release(block);
    }
}
