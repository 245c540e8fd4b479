//! How a segment changes in place: rows are encoded and decoded, chosen, dropped and cut off.

use std::sync::Arc;

use kvik_kernels::attention::{Codec, PlaneKind, TILE_TOKENS};

use super::{EncodedRows, PLANES, Plane, Segment, blocks, columns::RowPositions, release};
use crate::store::{Block, CacheError, KvStore};

impl Segment {
    /// Encodes the rows of a plane up to `end`, as far as whole groups of the codec allow; those that are encoded already stay, and so
    /// does a tile that another codec has begun.
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
        let encoding = store.tally.encoding(codec.kind());
        let mut numbers = Vec::new();
        for (index, planes) in self.tiles.iter_mut().enumerate() {
            let tile_start = index * TILE_TOKENS;
            let until = end.min(self.len).saturating_sub(tile_start).min(TILE_TOKENS);
            let until = until / codec.group_rows(plane) * codec.group_rows(plane);
            let this = &mut planes[plane as usize];
            let same = |encoded: &EncodedRows| {
                Arc::ptr_eq(&encoded.codec, codec) || encoded.codec.name() == codec.name()
            };
            if !this.encoded.as_ref().is_none_or(same) {
                continue;
            }
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
            store.bring(rows)?;
            numbers.resize((until - first) * dim, 0.0);
            for (row, out) in (first..until).zip(numbers.chunks_exact_mut(dim)) {
                shape.read_row(plane, store.rows(rows, plane_len), row, out);
            }
            let block = match &this.encoded {
                Some(encoded) => store.owned(encoded.block)?,
                None => store.take(class, encoding)?,
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
    /// [`CacheError::Full`] when a block had to be copied and there was none, [`CacheError::Spill`] when one lies in a file and
    /// cannot be read; the segment is then as it was.
    pub(crate) fn retain(&mut self, store: &mut KvStore, keep: &[u32]) -> Result<(), CacheError> {
        assert_eq!(self.dropped, 0, "rows of sliding windows are not chosen");
        if keep.len() == self.len {
            return Ok(());
        }
        self.decode(store)?;
        store.bring_all(blocks(&self.tiles))?;
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
        self.columns.retain(keep);
        self.len = keep.len();
        Ok(())
    }

    /// Puts the last row in the place of `row` and shortens the segment by one.
    ///
    /// # Errors
    /// [`CacheError::Full`] when a shared block had to be copied and there was none.
    pub(crate) fn swap_remove(&mut self, store: &mut KvStore, row: usize) -> Result<(), CacheError> {
        assert_eq!(self.dropped, 0, "rows of sliding windows are not chosen");
        let last = self.len - 1;
        // What is encoded has no slot to read from or to write to.
        for tile in [row / TILE_TOKENS, last / TILE_TOKENS] {
            for plane in PLANES {
                self.decode_plane(store, tile, plane)?;
            }
        }
        if row != last {
            let shape = store.layer(self.layer).tile();
            for plane in PLANES {
                let (dim, len) = shape.plane(plane);
                let mut numbers = vec![0.0; dim];
                let source = self.plane(last, plane).rows.expect("decoded planes have rows");
                store.bring(source)?;
                shape.read_row(plane, store.rows(source, len), last % TILE_TOKENS, &mut numbers);
                let target = &mut self.tiles[row / TILE_TOKENS][plane as usize].rows;
                let owned = store.owned(target.expect("decoded planes have rows"))?;
                *target = Some(owned);
                shape.write_row(plane, store.rows_mut(owned, len), row % TILE_TOKENS, &numbers);
            }
        }
        // Also for the last row: what is appended next does not follow the one before it.
        self.columns.replace(self.len, row, last);
        self.cut(store, last);
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
    pub(super) fn decode_plane(
        &mut self,
        store: &mut KvStore,
        tile: usize,
        plane: PlaneKind,
    ) -> Result<(), CacheError> {
        let shape = store.layer(self.layer).tile();
        let class = store.class_of(self.layer, plane);
        let encoding = self.encoding_of_rows();
        let this = &mut self.tiles[tile][plane as usize];
        let Some(EncodedRows { codec, block, rows }) = this.encoded.clone() else { return Ok(()) };
        let (dim, len) = shape.plane(plane);
        let mut numbers = vec![0u16; len];
        for block in this.blocks() {
            store.bring(block)?;
        }
        codec.decode(plane, dim, rows, store.bytes(block), &mut numbers);
        if let Some(rest) = this.rows {
            for row in rows..TILE_TOKENS {
                shape.copy_row(plane, store.rows(rest, len), &mut numbers, row);
            }
        }
        let target = match this.rows {
            Some(rest) => store.owned(rest)?,
            None => store.take(class, encoding)?,
        };
        store.rows_mut(target, len).copy_from_slice(&numbers);
        store.release(block);
        *this = Plane { rows: Some(target), encoded: None };
        Ok(())
    }

    /// Gives back whole tiles whose positions all lie before `position`.
    pub(crate) fn drop_before(&mut self, store: &mut KvStore, position: u32) {
        let RowPositions::From(start) = self.columns.positions else { return };
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
        match &self.columns.positions {
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
        self.columns.cut(len);
    }
}
