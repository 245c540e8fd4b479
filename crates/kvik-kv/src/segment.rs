//! A run of cached tokens of one layer and KV head.
//!
//! Rows lie in tiles of [`TILE_TOKENS`]. A tile has a plane of keys and one of values; the first rows of a plane may be
//! encoded, the rest are bf16 ([`Plane`]). An ordinary segment grows at its end and its positions are consecutive; once rows
//! were chosen or dropped, every row has its own position. A row may add a bias to its score, the log of how many tokens it
//! stands for, and may have its magnitudes stored apart from its direction, which other layers may then share.

use std::{ops::Range, sync::Arc};

use kvik_kernels::attention::{
    Codec, PlaneKind, Positions, Rotary, RowScales, StoredPlane, StoredTile, TILE_TOKENS, TileBuffer,
};

use crate::store::{Block, CacheError, KvStore};

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

/// Magnitudes of rows whose planes hold directions.
#[derive(Clone, Debug, Default)]
pub struct Magnitudes {
    /// Per row, padded to whole tiles.
    pub(crate) keys: Vec<f32>,
    /// Per row, padded to whole tiles.
    pub(crate) values: Vec<f32>,
}

/// Cached tokens of one layer and KV head.
pub struct Segment {
    layer: usize,
    /// Tiles that were given back from the front: they keep their index.
    dropped: usize,
    tiles: Vec<[Plane; 2]>,
    /// Rows, the dropped ones included.
    len: usize,
    positions: RowPositions,
    /// Per row, padded to whole tiles.
    bias: Option<Vec<f32>>,
    magnitudes: Option<Magnitudes>,
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
    /// They turn when they are read, each by its place in the segment, counted from 0.
    AtSlot(Arc<Rotary>),
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

#[derive(Clone)]
enum RowPositions {
    /// Consecutive, from this one on.
    From(u32),
    /// One per row, padded to whole tiles.
    Each(Vec<u32>),
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
            positions: RowPositions::From(position),
            bias: None,
            magnitudes: None,
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
        Ok(())
    }

    /// Gives every row its own position.
    pub(crate) fn set_positions(&mut self, mut positions: Vec<u32>) {
        positions.resize(self.len.next_multiple_of(TILE_TOKENS), u32::MAX);
        self.positions = RowPositions::Each(positions);
    }

    /// Gives every row a bias.
    pub(crate) fn set_bias(&mut self, mut bias: Vec<f32>) {
        bias.resize(self.len.next_multiple_of(TILE_TOKENS), 0.0);
        self.bias = Some(bias);
    }

    /// Says that the planes hold directions, and how long each row's key and value are.
    pub(crate) fn set_magnitudes(&mut self, mut magnitudes: Magnitudes) {
        let padded = self.len.next_multiple_of(TILE_TOKENS);
        magnitudes.keys.resize(padded, 0.0);
        magnitudes.values.resize(padded, 0.0);
        self.magnitudes = Some(magnitudes);
    }

    /// Says whether the stored keys are rotated.
    pub(crate) fn set_rotation(&mut self, rotation: KeyRotation) {
        self.rotation = rotation;
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
        let row = self.dropped * TILE_TOKENS + row;
        match &self.positions {
            RowPositions::From(start) => start + row as u32,
            RowPositions::Each(positions) => positions[row],
        }
    }

    /// Positions of all rows.
    pub fn positions(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|row| self.position(row))
    }

    /// Bias of a row.
    pub fn bias(&self, row: usize) -> f32 {
        self.bias.as_ref().map_or(0.0, |bias| bias[self.dropped * TILE_TOKENS + row])
    }

    /// The magnitudes of the rows, if they are stored apart.
    pub fn magnitudes(&self) -> Option<&Magnitudes> {
        self.magnitudes.as_ref()
    }

    /// Takes the magnitudes out: the planes are numbers like any others until they are set again.
    pub(crate) fn take_magnitudes(&mut self) -> Magnitudes {
        self.magnitudes.take().unwrap_or_default()
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
                    None => store.take(class)?,
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
        if let RowPositions::Each(positions) = &mut self.positions {
            positions.resize((self.len + rows).next_multiple_of(TILE_TOKENS), u32::MAX);
        }
        Ok(())
    }

    fn new_tile(&self, store: &mut KvStore) -> Result<[Plane; 2], CacheError> {
        let [keys, values] = PLANES.map(|plane| store.class_of(self.layer, plane));
        let keys = store.take(keys)?;
        match store.take(values) {
            Ok(values) => Ok([keys, values].map(|block| Plane { rows: Some(block), encoded: None })),
            Err(full) => {
                store.release(keys);
                Err(full.into())
            }
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
        match &mut self.positions {
            RowPositions::From(start) if self.len == 0 => *start = position,
            RowPositions::From(start) => debug_assert_eq!(*start + self.len as u32, position),
            RowPositions::Each(positions) => {
                for (row, slot) in positions[self.len..][..rows].iter_mut().enumerate() {
                    *slot = position + row as u32;
                }
            }
        }
        self.len += rows;
        let padded = self.len.next_multiple_of(TILE_TOKENS);
        if let Some(bias) = &mut self.bias {
            bias.resize(padded, 0.0);
        }
        if let Some(Magnitudes { keys, values }) = &mut self.magnitudes {
            keys.resize(padded, 1.0);
            values.resize(padded, 1.0);
        }
    }

    /// One past the index of the last tile with rows.
    pub(crate) fn tiles(&self) -> usize {
        self.len.div_ceil(TILE_TOKENS)
    }

    /// Tiles that were given back from the front.
    pub(crate) fn dropped_tiles(&self) -> usize {
        self.dropped
    }

    pub(crate) fn tile<'a>(&'a self, store: &'a KvStore, index: usize) -> Option<StoredTile<'a>> {
        let planes = self.tiles.get(index.checked_sub(self.dropped)?)?;
        let shape = store.layer(self.layer).tile();
        let [keys, values] = PLANES.map(|plane| planes[plane as usize].stored(store, shape.plane(plane).1));
        let start = index * TILE_TOKENS;
        let len = (self.len - start).min(TILE_TOKENS);
        let rows = start..start + TILE_TOKENS;
        Some(StoredTile {
            keys,
            values,
            len,
            positions: match &self.positions {
                RowPositions::From(position) => Positions::From(position + start as u32),
                RowPositions::Each(positions) => Positions::Each(&positions[rows.clone()]),
            },
            bias: self.bias.as_ref().map(|bias| &bias[rows.clone()]),
            scales: self.magnitudes.as_ref().map(|magnitudes| RowScales {
                keys: &magnitudes.keys[rows.clone()],
                values: &magnitudes.values[rows.clone()],
            }),
            rotation: match &self.rotation {
                KeyRotation::Stored => None,
                KeyRotation::AtPosition(rotary) => Some((rotary, None)),
                KeyRotation::AtSlot(rotary) => Some((rotary, Some(start as u32))),
            },
        })
    }

    /// Reads `rows` of a plane as attention sees them, into `out` (`[rows, dim]`).
    pub(crate) fn read(&self, store: &KvStore, plane: PlaneKind, rows: Range<usize>, out: &mut [f32]) {
        let shape = store.layer(self.layer).tile();
        let dim = shape.plane(plane).0;
        let mut buffer = TileBuffer::default();
        let mut out = out.chunks_exact_mut(dim);
        let mut row = self.dropped * TILE_TOKENS + rows.start;
        let end = self.dropped * TILE_TOKENS + rows.end;
        while row < end {
            let tile = self.tile(store, row / TILE_TOKENS).expect("rows that a segment holds have tiles");
            let tile = tile.decode(shape, &mut buffer);
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
    }

    /// Encodes the rows of a plane up to `end`, as far as whole groups of the codec allow; those that are encoded already stay.
    /// Gives back the bf16 blocks that are not needed any more. `shared` says what a block that others hold as well was
    /// encoded to, so that they go on sharing.
    ///
    /// # Errors
    /// [`CacheError`] when there is no room; what was encoded so far is.
    pub(crate) fn encode(
        &mut self,
        store: &mut KvStore,
        plane: PlaneKind,
        end: usize,
        codec: &Arc<dyn Codec>,
        shared: &mut Vec<(Block, EncodedRows)>,
    ) -> Result<(), CacheError> {
        let shape = store.layer(self.layer).tile();
        let (dim, plane_len) = shape.plane(plane);
        let class = store.class_for(codec.block_bytes(plane, dim))?;
        let mut numbers = Vec::new();
        for (index, planes) in self.tiles.iter_mut().enumerate() {
            let tile_start = index * TILE_TOKENS;
            let until = end.min(self.len).saturating_sub(tile_start).min(TILE_TOKENS);
            let until = until / codec.group_rows(plane) * codec.group_rows(plane);
            let this = &mut planes[plane as usize];
            let first = this.encoded.as_ref().map_or(0, |encoded| encoded.rows);
            let Some(rows) = this.rows else { continue };
            if first >= until {
                continue;
            }
            if this.encoded.is_none()
                && until == TILE_TOKENS
                && let Some((_, encoded)) = shared.iter().find(|(block, _)| *block == rows)
            {
                store.share(encoded.block);
                this.encoded = Some(encoded.clone());
                store.release(rows);
                this.rows = None;
                continue;
            }
            numbers.resize((until - first) * dim, 0.0);
            for (row, out) in (first..until).zip(numbers.chunks_exact_mut(dim)) {
                shape.read_row(plane, store.rows(rows, plane_len), row, out);
            }
            let block = match &this.encoded {
                Some(encoded) => store.owned(encoded.block)?,
                None => store.take(class)?,
            };
            codec.encode(plane, dim, first, &numbers, &mut store.bytes_mut(block)[..]);
            let encoded = EncodedRows { codec: Arc::clone(codec), block, rows: until };
            if until == TILE_TOKENS {
                if store.holders(rows) > 1 {
                    shared.push((rows, encoded.clone()));
                }
                store.release(rows);
                this.rows = None;
            }
            this.encoded = Some(encoded);
        }
        Ok(())
    }

    /// Keeps the rows that `keep` lists, in rising order, and gives back what the others held.
    ///
    /// # Errors
    /// [`CacheError::Full`] when a block had to be copied and there was none; the segment is then as it was.
    pub(crate) fn retain(&mut self, store: &mut KvStore, keep: &[u32]) -> Result<(), CacheError> {
        assert_eq!(self.dropped, 0, "rows of sliding windows are not chosen");
        if keep.len() == self.len {
            return Ok(());
        }
        self.decode(store)?;
        let shape = store.layer(self.layer).tile();
        let tiles = keep.len().div_ceil(TILE_TOKENS);
        for plane in PLANES {
            let len = shape.plane(plane).1;
            let mut target = vec![0u16; len];
            for (index, keep) in keep.chunks(TILE_TOKENS).enumerate() {
                if keep.iter().enumerate().all(|(slot, &row)| row as usize == index * TILE_TOKENS + slot) {
                    continue;
                }
                for (slot, &row) in keep.iter().enumerate() {
                    let source = self.plane(row as usize, plane).rows.expect("decoded planes have rows");
                    let source = (store.rows(source, len), row as usize % TILE_TOKENS);
                    shape.move_row(plane, source, (&mut target, slot));
                }
                // Rows that are still to be moved lie behind this tile.
                let block = &mut self.tiles[index][plane as usize].rows;
                let owned = store.owned(block.expect("decoded planes have rows"))?;
                *block = Some(owned);
                store.rows_mut(owned, len).copy_from_slice(&target);
            }
        }
        for tile in self.tiles.drain(tiles..) {
            release(store, tile);
        }
        let positions = keep.iter().map(|&row| self.position(row as usize)).collect();
        let gather = |column: &[f32]| -> Vec<f32> { keep.iter().map(|&row| column[row as usize]).collect() };
        let bias = self.bias.as_deref().map(gather);
        let magnitudes = self
            .magnitudes
            .as_ref()
            .map(|old| Magnitudes { keys: gather(&old.keys), values: gather(&old.values) });
        self.len = keep.len();
        self.set_positions(positions);
        if let Some(bias) = bias {
            self.set_bias(bias);
        }
        if let Some(magnitudes) = magnitudes {
            self.set_magnitudes(magnitudes);
        }
        Ok(())
    }

    /// Puts the last row in the place of `row` and shortens the segment by one.
    ///
    /// # Errors
    /// [`CacheError::Full`] when a shared block had to be copied and there was none.
    pub(crate) fn swap_remove(&mut self, store: &mut KvStore, row: usize) -> Result<(), CacheError> {
        assert_eq!(self.dropped, 0, "rows of sliding windows are not chosen");
        let last = self.len - 1;
        if row != last {
            let shape = store.layer(self.layer).tile();
            for plane in PLANES {
                let (dim, len) = shape.plane(plane);
                let mut numbers = vec![0.0; dim];
                let source = self.plane(last, plane).rows;
                let target = self.tiles[row / TILE_TOKENS][plane as usize].rows;
                let (Some(source), Some(target)) = (source, target) else {
                    // What is encoded has no slot to write to: the general way.
                    let keep: Vec<u32> = (0..self.len as u32).filter(|&r| r as usize != row).collect();
                    return self.retain(store, &keep);
                };
                shape.read_row(plane, store.rows(source, len), last % TILE_TOKENS, &mut numbers);
                let target = store.owned(target)?;
                self.tiles[row / TILE_TOKENS][plane as usize].rows = Some(target);
                shape.write_row(plane, store.rows_mut(target, len), row % TILE_TOKENS, &numbers);
            }
        }
        if let RowPositions::From(start) = self.positions {
            self.set_positions((0..self.len as u32).map(|row| start + row).collect());
        }
        if let RowPositions::Each(positions) = &mut self.positions {
            positions[row] = positions[last];
            positions[last] = u32::MAX;
        }
        let magnitudes = self.magnitudes.as_mut().map(|m| [&mut m.keys, &mut m.values]);
        for column in self.bias.as_mut().into_iter().chain(magnitudes.into_iter().flatten()) {
            column[row] = column[last];
        }
        self.len = last;
        for tile in self.tiles.drain(self.len.div_ceil(TILE_TOKENS)..) {
            release(store, tile);
        }
        Ok(())
    }

    /// Makes bf16 rows of everything that is encoded.
    fn decode(&mut self, store: &mut KvStore) -> Result<(), CacheError> {
        for tile in 0..self.tiles.len() {
            for plane in PLANES {
                self.decode_plane(store, tile, plane)?;
            }
        }
        Ok(())
    }

    /// Makes bf16 rows of what is encoded of a plane of the tile at index `tile`, dropped ones not counted.
    fn decode_plane(&mut self, store: &mut KvStore, tile: usize, plane: PlaneKind) -> Result<(), CacheError> {
        let shape = store.layer(self.layer).tile();
        let class = store.class_of(self.layer, plane);
        let this = &mut self.tiles[tile][plane as usize];
        let Some(EncodedRows { codec, block, rows }) = this.encoded.clone() else { return Ok(()) };
        let (dim, len) = shape.plane(plane);
        let mut numbers = vec![0u16; len];
        codec.decode(plane, dim, rows, store.bytes(block), &mut numbers);
        if let Some(rest) = this.rows {
            for row in rows..TILE_TOKENS {
                shape.copy_row(plane, store.rows(rest, len), &mut numbers, row);
            }
        }
        let target = match this.rows {
            Some(rest) => store.owned(rest)?,
            None => store.take(class)?,
        };
        store.rows_mut(target, len).copy_from_slice(&numbers);
        store.release(block);
        *this = Plane { rows: Some(target), encoded: None };
        Ok(())
    }

    /// Gives back whole tiles whose positions all lie before `position`.
    pub(crate) fn drop_before(&mut self, store: &mut KvStore, position: u32) {
        let RowPositions::From(start) = self.positions else { return };
        let tiles = (position.saturating_sub(start) as usize / TILE_TOKENS).min(self.tiles());
        let drop = tiles.saturating_sub(self.dropped).min(self.tiles.len());
        for tile in self.tiles.drain(..drop) {
            release(store, tile);
        }
        self.dropped += drop;
    }

    /// Forgets the rows at `position` and later, and gives their blocks back. False if it cannot, because rows before
    /// `needed_from` were already dropped.
    pub(crate) fn truncate(&mut self, store: &mut KvStore, position: u32, needed_from: u32) -> bool {
        match &self.positions {
            RowPositions::Each(positions) => {
                let keep: Vec<u32> =
                    (0..self.len as u32).filter(|&row| positions[row as usize] < position).collect();
                // Most often the rows to forget are the last ones.
                if keep.iter().enumerate().all(|(index, &row)| index == row as usize) {
                    self.cut(store, keep.len());
                    return true;
                }
                self.retain(store, &keep).is_ok()
            }
            RowPositions::From(start) => {
                if self.dropped > 0 && needed_from < start + (self.dropped * TILE_TOKENS) as u32 {
                    return false;
                }
                let len = self.len.min(position.saturating_sub(*start) as usize);
                self.cut(store, len);
                true
            }
        }
    }

    /// Forgets all rows from row `len` on; `len` counts the dropped rows.
    fn cut(&mut self, store: &mut KvStore, len: usize) {
        self.len = len;
        let keep = self.tiles().saturating_sub(self.dropped);
        for tile in self.tiles.drain(keep..) {
            release(store, tile);
        }
        let last_rows = self.len % TILE_TOKENS;
        if last_rows > 0
            && let Some(planes) = self.tiles.last_mut()
        {
            for encoded in planes.iter_mut().filter_map(|plane| plane.encoded.as_mut()) {
                encoded.rows = encoded.rows.min(last_rows);
            }
        }
        let padded = self.len.next_multiple_of(TILE_TOKENS);
        if let RowPositions::Each(positions) = &mut self.positions {
            positions.truncate(padded);
            positions[len..].fill(u32::MAX);
        }
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
            positions: self.positions.clone(),
            bias: self.bias.clone(),
            magnitudes: self.magnitudes.clone(),
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
        self.positions = RowPositions::From(0);
        self.bias = None;
        self.magnitudes = None;
        self.rotation = KeyRotation::Stored;
        self.tiles.drain(..).flat_map(|tile| tile.into_iter().flat_map(Plane::into_blocks))
    }

    /// Gives all blocks back.
    pub(crate) fn release(mut self, store: &mut KvStore) {
        for block in self.take_blocks() {
            store.release(block);
        }
    }

    /// Bytes of the blocks, of which one that several hold counts in equal parts, and of what stands beside them per row.
    pub(crate) fn used_bytes(&self, store: &KvStore) -> usize {
        let blocks: usize =
            blocks(&self.tiles).map(|block| store.block_bytes(block) / store.holders(block)).sum();
        let positions = match &self.positions {
            RowPositions::From(_) => 0,
            RowPositions::Each(positions) => positions.len(),
        };
        let bias = self.bias.as_ref().map_or(0, Vec::len);
        let magnitudes = self.magnitudes.as_ref().map_or(0, |m| m.keys.len() + m.values.len());
        blocks + 4 * (positions + bias + magnitudes)
    }
}

impl Plane {
    fn stored<'a>(&'a self, store: &'a KvStore, len: usize) -> StoredPlane<'a> {
        let rows = self.rows.map(|block| store.rows(block, len));
        match (&self.encoded, rows) {
            (None, Some(rows)) => StoredPlane::Rows(rows),
            (Some(encoded), rest) => StoredPlane::Encoded {
                codec: &*encoded.codec,
                block: store.bytes(encoded.block),
                rows: encoded.rows,
                rest,
            },
            (None, None) => StoredPlane::Rows(&[]),
        }
    }

    fn into_blocks(self) -> impl Iterator<Item = Block> {
        self.rows.into_iter().chain(self.encoded.map(|encoded| encoded.block))
    }
}

fn blocks(tiles: &[[Plane; 2]]) -> impl Iterator<Item = Block> {
    tiles
        .iter()
        .flatten()
        .flat_map(|plane| plane.rows.into_iter().chain(plane.encoded.as_ref().map(|e| e.block)))
}

fn release(store: &mut KvStore, tile: [Plane; 2]) {
    for block in tile.into_iter().flat_map(Plane::into_blocks) {
        store.release(block);
    }
}
