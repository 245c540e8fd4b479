//! Rows that stand in a head a second time, where queries that do not visit all tiles find them: the part of a long cache that
//! a method chose for the next queries, row by row and not tile by tile.
//!
//! The segments keep every row, encoded or in a file; copies are bf16 rows in RAM, rotated. They count as memory of the sequence,
//! and not as rows of the head. Copies that stay for the next queries cost nothing; what is new is decoded and put in the place of
//! what is not wanted any more ([`OpenCache::copy`]).

use std::{ops::Range, sync::Arc};

use bytemuck::{cast_slice, cast_slice_mut};
use kvik_kernels::attention::{Codec, PlaneKind, StoredPlane, TILE_TOKENS, TileShape, to_bf16};

use crate::{
    CacheError, KeyRotation, LayerShape, OpenCache, Segment,
    store::{Block, KvStore},
    tally::Encoding,
};

/// Tokens whose keys lie side by side in the kernels' layout.
const GROUP_TOKENS: usize = 16;
/// Runs that a thread copies at a time: some microseconds.
const GRAIN: usize = 8;

/// A run of rows to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunCopy {
    /// Head whose rows they are.
    pub kv_head: usize,
    /// First row in the segment of copies.
    pub to: usize,
    /// First row of the head.
    pub from: usize,
}

/// Where rows that are to be copied lie.
struct Source<'a> {
    segment: &'a Segment,
    row: usize,
    stored: StoredPlane<'a>,
}

/// A tile of copies: which runs are copied to it, and its blocks.
struct Target {
    runs: Range<usize>,
    blocks: [Block; 2],
}

impl OpenCache<'_> {
    /// Makes a segment of the first `tiles` tiles of the growing segment of a head, in front of it. They must be full.
    pub fn split(&mut self, layer: usize, kv_head: usize, tiles: usize) {
        let head = &mut self.layers[layer].heads[kv_head];
        let front = head.growing().split_front(tiles);
        let last = head.segments.len() - 1;
        head.segments.insert(last, front);
    }

    /// Puts keys that all heads of a layer have encoded together in the place of those of the segment at `index` of each head,
    /// whose tiles are full. `rows` (`[n, dim]`) are what the codecs encode; the heads share the blocks that hold them, and each
    /// reads its own keys out of them by its own codec. What it reads turns by `rotation`.
    ///
    /// # Errors
    /// [`CacheError`] if there is no room; the keys are then as they were.
    pub fn replace_keys(
        &mut self,
        layer: usize,
        index: usize,
        codecs: &[Arc<dyn Codec>],
        dim: usize,
        rows: &[f32],
        rotation: KeyRotation,
    ) -> Result<(), CacheError> {
        let class = self.store.class_for(codecs[0].block_bytes(PlaneKind::Keys, dim))?;
        let encoding = self.store.tally.encoding(codecs[0].kind());
        let mut blocks = Vec::with_capacity(rows.len() / (dim * TILE_TOKENS));
        for rows in rows.chunks(dim * TILE_TOKENS) {
            match self.store.take(class, encoding) {
                Ok(block) => {
                    codecs[0].encode(PlaneKind::Keys, dim, 0, rows, self.store.bytes_mut(block));
                    blocks.push(block);
                }
                Err(full) => {
                    blocks.into_iter().for_each(|block| self.store.release(block));
                    return Err(full.into());
                }
            }
        }
        for (kv_head, codec) in codecs.iter().enumerate() {
            if kv_head > 0 {
                blocks.iter().for_each(|&block| _ = self.store.share(block));
            }
            let segment = &mut self.layers[layer].heads[kv_head].segments[index];
            segment.replace_keys(self.store, codec, &blocks, rotation.clone());
        }
        Ok(())
    }

    /// Adds a segment to the copies of a head.
    pub fn add_copies(&mut self, layer: usize, kv_head: usize, segment: Segment) {
        segment.count_rows_as(self.store, Encoding::COPIES);
        self.layers[layer].heads[kv_head].copies.push(segment);
    }

    /// Gives the copies of a head back.
    pub fn drop_copies(&mut self, layer: usize, kv_head: usize) {
        for segment in std::mem::take(&mut self.layers[layer].heads[kv_head].copies) {
            segment.release(self.store);
        }
    }

    /// Copies of a head's rows, segment by segment.
    pub fn copies(&self, layer: usize, kv_head: usize) -> &[Segment] {
        &self.layers[layer].heads[kv_head].copies
    }

    /// Keys and values of a segment of a head's copies as attention sees them, `[rows, key_dim]` and `[rows, value_dim]`.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if they lie in a file and cannot be read.
    pub fn read_copies(
        &self,
        layer: usize,
        kv_head: usize,
        index: usize,
    ) -> Result<(Vec<f32>, Vec<f32>), CacheError> {
        let segment = &self.copies(layer, kv_head)[index];
        let LayerShape { key_dim, value_dim, .. } = self.layer(layer);
        let (mut keys, mut values) =
            (vec![0.0; segment.len() * key_dim], vec![0.0; segment.len() * value_dim]);
        segment.read(self.store, PlaneKind::Keys, 0..segment.len(), &mut keys)?;
        segment.read(self.store, PlaneKind::Values, 0..segment.len(), &mut values)?;
        Ok((keys, values))
    }

    /// Copies runs of `len` rows with positions in a row, of the heads of a layer, into the last segment of each head's copies.
    /// Runs begin at multiples of `len`. `angles` (`[positions, pairs]`) turns keys that are stored before rotation; positions
    /// beyond it turn without a table.
    ///
    /// What lies in a file is read; values are read on another thread while keys are rebuilt.
    ///
    /// # Errors
    /// [`CacheError::Full`] if copies are shared with another sequence and there is no room for own ones, [`CacheError::Spill`] if
    /// rows cannot be read.
    ///
    /// # Panics
    /// If `len` is odd or does not divide 16.
    pub fn copy(
        &mut self,
        layer: usize,
        len: usize,
        runs: &mut [RunCopy],
        angles: &[(f32, f32)],
    ) -> Result<(), CacheError> {
        assert!(len.is_multiple_of(2) && GROUP_TOKENS.is_multiple_of(len), "runs have 2, 4, 8 or 16 rows");
        runs.sort_unstable();
        self.read_ahead(layer, runs);
        let shape = self.layer(layer).tile();
        let (key_words, value_words) = (len * shape.key_pairs(), len / 2 * shape.value_stride());
        let mut keys = vec![0u32; runs.len() * key_words];
        self.bring_plane(layer, runs, PlaneKind::Keys)?;
        self.pool.for_each_row_in(&mut keys, key_words, GRAIN, |index, out| {
            self.source(layer, runs[index], PlaneKind::Keys).key_image(shape, len, angles, out);
        });
        let mut values = vec![0u32; runs.len() * value_words];
        self.bring_plane(layer, runs, PlaneKind::Values)?;
        self.pool.for_each_row_in(&mut values, value_words, GRAIN, |index, out| {
            self.source(layer, runs[index], PlaneKind::Values).value_image(shape, len, out);
        });
        let targets = self.own_targets(layer, len, runs)?;
        let writer = self.store.writer();
        let write = |Target { runs: own, blocks: [key_block, value_block] }: &Target| {
            writer.with_rows(*key_block, shape.key_len(), |plane| {
                for (run, image) in
                    runs[own.clone()].iter().zip(keys[own.start * key_words..].chunks_exact(key_words))
                {
                    put_keys(shape, len, run.to % TILE_TOKENS, image, cast_slice_mut(plane));
                }
            });
            writer.with_rows(*value_block, shape.value_len(), |plane| {
                let images = values[own.start * value_words..].chunks_exact(value_words);
                for (run, image) in runs[own.clone()].iter().zip(images) {
                    let at = run.to % TILE_TOKENS / 2 * shape.value_stride();
                    cast_slice_mut::<u16, u32>(plane)[at..at + value_words].copy_from_slice(image);
                }
            });
        };
        self.pool.for_each_piece(targets.len(), 1, |pieces| targets[pieces].iter().for_each(write));
        Ok(())
    }

    /// Has the values of `runs` read that lie in a file.
    fn read_ahead(&mut self, layer: usize, runs: &[RunCopy]) {
        if self.store.has_away() {
            let blocks = self.blocks(layer, runs, PlaneKind::Values);
            self.store.prefetch(blocks.into_iter());
        }
    }

    fn bring_plane(&mut self, layer: usize, runs: &[RunCopy], plane: PlaneKind) -> Result<(), CacheError> {
        if self.store.has_away() {
            let blocks = self.blocks(layer, runs, plane);
            blocks.into_iter().try_for_each(|block| self.store.bring(block))?;
        }
        Ok(())
    }

    /// The blocks that hold a plane of `runs`.
    fn blocks(&self, layer: usize, runs: &[RunCopy], plane: PlaneKind) -> Vec<Block> {
        let of = |run: &RunCopy| {
            let head = &self.layers[layer].heads[run.kv_head];
            let (segment, row) = head.find(run.from);
            head.segments[segment].planes_of(row)[plane as usize].blocks()
        };
        runs.iter().flat_map(of).collect()
    }

    fn source(&self, layer: usize, run: RunCopy, plane: PlaneKind) -> Source<'_> {
        let head = &self.layers[layer].heads[run.kv_head];
        let (index, row) = head.find(run.from);
        let segment = &head.segments[index];
        let store: &KvStore = self.store;
        Source { segment, row, stored: segment.stored(store, plane, row) }
    }

    /// The tiles that runs are copied to, ready to be written; the rows get their positions.
    fn own_targets(&mut self, layer: usize, len: usize, runs: &[RunCopy]) -> Result<Vec<Target>, CacheError> {
        let place = |run: &RunCopy| (run.kv_head, run.to / TILE_TOKENS);
        let mut targets: Vec<Target> = Vec::new();
        for of_tile in runs.chunk_by(|a, b| place(a) == place(b)) {
            let head = &mut self.layers[layer].heads[of_tile[0].kv_head];
            let start = targets.last().map_or(0, |last| last.runs.end);
            let copies = head.copies.last_mut().expect("a head with copies");
            targets.push(Target {
                runs: start..start + of_tile.len(),
                blocks: copies.own(self.store, of_tile[0].to)?,
            });
            for run in of_tile {
                let (index, row) = head.find(run.from);
                let first = head.segments[index].position(row);
                let copies = head.copies.last_mut().expect("a head with copies");
                (0..len).for_each(|offset| copies.set_position(run.to + offset, first + offset as u32));
            }
        }
        Ok(targets)
    }
}

impl Source<'_> {
    fn rows(&self, len: usize) -> Range<usize> {
        let row = self.row % TILE_TOKENS;
        row..row + len
    }

    /// The keys of `len` rows as attention sees them, pairs of bf16, `[pair][row]`.
    fn key_image(&self, shape: TileShape, len: usize, angles: &[(f32, f32)], out: &mut [u32]) {
        let dim = shape.key_dim;
        let mut keys = vec![0f32; len * dim];
        read(self.stored, PlaneKind::Keys, shape, self.rows(len), &mut keys);
        if let KeyRotation::AtPosition(rotary) = self.segment.rotation() {
            let pairs = rotary.frequencies.len();
            for (row, key) in (self.row..).zip(keys.chunks_exact_mut(dim)) {
                let position = self.segment.position(row);
                match angles.get(position as usize * pairs..(position as usize + 1) * pairs) {
                    Some(angles) => rotary.rotate_by(key, angles),
                    None => rotary.rotate(key, position),
                }
            }
        }
        for (row, key) in keys.chunks_exact(dim).enumerate() {
            for (pair, numbers) in key.chunks(2).enumerate() {
                let round = |x: f32| u32::from(to_bf16(x));
                out[pair * len + row] = round(numbers[0]) | numbers.get(1).map_or(0, |&odd| round(odd)) << 16;
            }
        }
    }

    /// The values of `len` rows as a plane has them, `[pair of rows][stride]` pairs of bf16.
    fn value_image(&self, shape: TileShape, len: usize, out: &mut [u32]) {
        let rows = self.rows(len);
        if let StoredPlane::Rows(plane) = self.stored {
            let at = rows.start / 2 * shape.value_stride();
            out.copy_from_slice(&cast_slice(plane)[at..at + out.len()]);
            return;
        }
        let mut values = vec![0f32; len * shape.value_dim];
        read(self.stored, PlaneKind::Values, shape, rows, &mut values);
        for (row, value) in values.chunks_exact(shape.value_dim).enumerate() {
            shape.write_row(PlaneKind::Values, cast_slice_mut(out), row, value);
        }
    }
}

/// Some rows of a plane as they are stored, `[rows, dim]`.
fn read(stored: StoredPlane<'_>, plane: PlaneKind, shape: TileShape, rows: Range<usize>, out: &mut [f32]) {
    let dim = shape.plane(plane).0;
    let (encoded, rest) = match stored {
        StoredPlane::Rows(rest) => (rows.start, Some(rest)),
        StoredPlane::Encoded { codec, block, rows: encoded, rest } => {
            let end = encoded.clamp(rows.start, rows.end);
            codec.decode_rows(plane, dim, rows.start..end, block, &mut out[..(end - rows.start) * dim]);
            (end, rest)
        }
    };
    let out = out.chunks_exact_mut(dim).skip(encoded - rows.start);
    for (row, out) in (encoded..rows.end).zip(out) {
        shape.read_row(plane, rest.expect("rows that are not encoded are bf16"), row, out);
    }
}

/// Writes keys, `[pair][row]`, to rows `to..to + len` of a plane.
fn put_keys(shape: TileShape, len: usize, to: usize, image: &[u32], plane: &mut [u32]) {
    let group = to / GROUP_TOKENS * GROUP_TOKENS * shape.key_pairs();
    let lines = plane[group..].chunks_exact_mut(GROUP_TOKENS);
    for (line, keys) in lines.zip(image.chunks_exact(len)) {
        line[to % GROUP_TOKENS..][..len].copy_from_slice(keys);
    }
}
