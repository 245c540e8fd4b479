//! A sequence's cache, opened for a method to rewrite.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use kvik_kernels::{
    ThreadPool,
    attention::{Codec, ColumnSums, PlaneKind, Rotary},
};
use kvik_memory::SpillFile;

use crate::{
    KvShape, KvStore, LayerShape, RowStatistics, Segment, SegmentRow, attend,
    evidence::WindowQueries,
    head::HeadCache,
    segment::{EncodedRows, Plane},
    sequence::LayerCache,
    store::{Block, CacheError},
};

/// A sequence's cache between two passes (or two layers), with all verbs by which methods read and rewrite it.
///
/// Rows of a head are counted over its segments, in the order in which attention folds them: rising positions, unless a method
/// reordered them. Tiles are counted over its segments as well; each segment begins a tile of its own.
///
/// All verbs work on rows wherever they lie. What a file holds is brought into RAM to be rewritten, and read from the file for
/// the moment by the verbs that only look; should that fail, they give zeros, and the hook that looked fails when it returns.
pub struct OpenCache<'a> {
    pub(crate) pool: &'a ThreadPool,
    pub(crate) store: &'a mut KvStore,
    pub(crate) layers: &'a mut [LayerCache],
    pub(crate) window: &'a [WindowQueries],
    pub(crate) tokens: usize,
    pub(crate) new_tokens: usize,
    /// What blocks with several holders were encoded to since the cache was opened.
    pub(crate) encoded: Vec<(Block, EncodedRows)>,
    /// Why rows could not be read.
    pub(crate) unread: OnceLock<CacheError>,
}

impl OpenCache<'_> {
    /// Threads to work on.
    pub fn pool(&self) -> &ThreadPool {
        self.pool
    }

    /// What the model caches.
    pub fn shape(&self) -> &KvShape {
        self.store.shape()
    }

    /// What a layer caches.
    pub fn layer(&self, layer: usize) -> LayerShape {
        self.store.layer(layer)
    }

    /// How a layer's keys are rotated.
    pub fn rotary(&self, layer: usize) -> Option<Arc<Rotary>> {
        self.store.shape().rotary[layer].clone()
    }

    /// Every layer and KV head that methods rewrite: those of layers without a sliding window.
    pub fn heads(&self) -> Vec<(usize, usize)> {
        let shape = self.shape();
        shape
            .full_layers()
            .flat_map(|layer| (0..shape.layers[layer].kv_heads).map(move |h| (layer, h)))
            .collect()
    }

    /// Tokens of the sequence so far: the position of the next one.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens that the pass just added; in [`Method::end_of_prompt`](crate::Method::end_of_prompt), those of the whole prompt.
    pub fn new_tokens(&self) -> usize {
        self.new_tokens
    }

    /// Rows of a head.
    pub fn rows(&self, layer: usize, kv_head: usize) -> usize {
        self.head(layer, kv_head).rows()
    }

    /// Positions of a head's rows.
    pub fn positions(&self, layer: usize, kv_head: usize) -> Vec<u32> {
        self.segments(layer, kv_head).iter().flat_map(Segment::positions).collect()
    }

    /// The row with the lowest position among a head's rows from row `from` on.
    ///
    /// # Panics
    /// If there is none.
    pub fn oldest(&self, layer: usize, kv_head: usize, from: usize) -> usize {
        let segments = self.segments(layer, kv_head).iter();
        let rows = segments.flat_map(Segment::positions).enumerate().skip(from);
        rows.min_by_key(|(_, position)| *position).expect("there is a row").0
    }

    /// Segments of a head, in the order in which attention folds them.
    pub fn segments(&self, layer: usize, kv_head: usize) -> &[Segment] {
        &self.head(layer, kv_head).segments
    }

    /// Keys of some rows as attention sees them at their positions, `[rows, key_dim]`.
    pub fn keys(&self, layer: usize, kv_head: usize, rows: Range<usize>) -> Vec<f32> {
        self.plane(layer, kv_head, PlaneKind::Keys, rows)
    }

    /// Values of some rows as attention sees them, `[rows, value_dim]`.
    pub fn values(&self, layer: usize, kv_head: usize, rows: Range<usize>) -> Vec<f32> {
        self.plane(layer, kv_head, PlaneKind::Values, rows)
    }

    /// Keys, as attention sees them at their positions, or values of some rows, `[rows, dim]`.
    pub fn plane(&self, layer: usize, kv_head: usize, plane: PlaneKind, rows: Range<usize>) -> Vec<f32> {
        let dim = self.layer(layer).tile().plane(plane).0;
        let mut out = vec![0.0; rows.len() * dim];
        let mut filled = 0;
        self.head(layer, kv_head).for_each_part(rows, |segment, part| {
            let len = part.len() * dim;
            self.note(segment.read(self.store, plane, part, &mut out[filled..filled + len]).err());
            filled += len;
        });
        out
    }

    /// What was observed of a head's rows.
    pub fn statistics(&self, layer: usize, kv_head: usize) -> &RowStatistics {
        &self.head(layer, kv_head).statistics
    }

    /// The attention that each row of a layer's heads gets from the last `window` queries of the prompt, summed over them:
    /// `[kv_heads][rows]`, or `[heads][rows]` for [`ColumnSums::EachHead`]. Fewer queries if the prompt had fewer, or a method
    /// asked for fewer ([`Evidence::window`](crate::Evidence)).
    pub fn window_sums(&self, layer: usize, window: usize, each: ColumnSums) -> Vec<Vec<f32>> {
        let heads = &self.layers[layer].heads;
        let (sums, unread) = self.window[layer].sums(self.pool, self.store, heads, window, each);
        self.note(unread);
        sums
    }

    /// The last queries of the prompt at `layer`, `[rows, heads, key_dim]`, rotated, their positions, and heads and dimensions;
    /// `None` if no method asked for them.
    pub fn window_queries(
        &self,
        layer: usize,
    ) -> Option<(&[f32], &[u32], kvik_kernels::attention::AttentionShape)> {
        self.window[layer].queries()
    }

    /// Keeps the rows that `keep` lists, in rising order, and frees the others. What is encoded in a segment that loses rows
    /// becomes bf16 again, until its method encodes it anew.
    ///
    /// # Errors
    /// [`CacheError::Full`] if a shared block had to be copied and there was no room.
    pub fn retain(&mut self, layer: usize, kv_head: usize, keep: &[u32]) -> Result<(), CacheError> {
        self.layers[layer].heads[kv_head].retain(self.store, keep)
    }

    /// Forgets one row, without moving the others: the last row of its segment takes its place.
    ///
    /// # Errors
    /// As for [`Self::retain`].
    pub fn evict(&mut self, layer: usize, kv_head: usize, row: usize) -> Result<(), CacheError> {
        self.layers[layer].heads[kv_head].swap_remove(self.store, row)
    }

    /// Lets attention see a head's rows without the gaps that forgotten ones left: keys turn as if the rows stood at consecutive
    /// positions, the last of them right before the next token, so that no distance exceeds the number of rows. Their positions
    /// stay what they are. From now on it is so after every rewriting; where keys are not rotated, it does nothing.
    pub fn close_gaps(&mut self, layer: usize, kv_head: usize) {
        self.layers[layer].heads[kv_head].turns = self.store.turns(layer);
    }

    /// Encodes the rows of a head before row `end`, as far as whole groups of the codec allow. What is encoded already stays.
    /// Blocks that several layers hold are encoded once.
    ///
    /// # Errors
    /// [`CacheError`] if there is no room.
    pub fn encode(
        &mut self,
        layer: usize,
        kv_head: usize,
        plane: PlaneKind,
        end: usize,
        codec: &Arc<dyn Codec>,
    ) -> Result<(), CacheError> {
        let mut start = 0;
        for segment in &mut self.layers[layer].heads[kv_head].segments {
            let len = segment.len();
            if end > start {
                segment.encode(self.store, plane, (end - start).min(len), codec, &mut self.encoded)?;
            }
            start += len;
        }
        Ok(())
    }

    /// A segment of `layer` made of `rows`.
    ///
    /// # Errors
    /// [`CacheError::Full`] if there is no room.
    pub fn segment(&mut self, layer: usize, rows: &[SegmentRow<'_>]) -> Result<Segment, CacheError> {
        Segment::from_rows(self.store, layer, rows)
    }

    /// Puts `segment` in front of the growing segment of a head. The statistics of its rows begin at zero.
    pub fn insert(&mut self, layer: usize, kv_head: usize, segment: Segment) {
        let head = &mut self.layers[layer].heads[kv_head];
        let at = head.rows() - head.last().len();
        for column in [&mut head.statistics.accumulated, &mut head.statistics.step] {
            if !column.is_empty() {
                let zeros = vec![0.0; segment.len()];
                column.splice(at.min(column.len())..at.min(column.len()), zeros);
            }
        }
        let last = head.segments.len() - 1;
        head.segments.insert(last, segment);
    }

    /// Gives a segment's blocks back.
    pub fn release(&mut self, segment: Segment) {
        segment.release(self.store);
    }

    /// The tiles that the next queries at a head visit, counted over its segments (each begins a tile of its own), besides its
    /// copies; `None` for all of them, without copies. Those that lie in a file are brought before the queries attend.
    pub fn visit(&mut self, layer: usize, kv_head: usize, tiles: Option<Vec<u32>>) {
        self.layers[layer].heads[kv_head].visits = tiles;
    }

    /// The tiles that queries at a head visit, as [`Self::visit`] was told.
    pub fn visited(&self, layer: usize, kv_head: usize) -> Option<&[u32]> {
        self.head(layer, kv_head).visits.as_deref()
    }

    /// Tiles of a head that have rows, those that a sliding window has left behind included.
    pub fn tiles(&self, layer: usize, kv_head: usize) -> usize {
        attend::tiles(self.head(layer, kv_head))
    }

    /// Takes a plane of some tiles of a head out of RAM. What `file` does not hold yet is written to it; a tile that was brought
    /// back and not changed costs nothing. Tiles that new tokens may be written to stay.
    ///
    /// A tile that other layers or sequences hold as well moves for all of them, and is brought back for whoever visits it.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if a tile cannot be written. It stays in RAM, and so do those after it. The sequence goes on as it
    /// is when the hook fails with that: a hook that rewrites offloads last.
    pub fn offload(
        &mut self,
        file: &SpillFile,
        layer: usize,
        kv_head: usize,
        plane: PlaneKind,
        tiles: impl IntoIterator<Item = u32>,
    ) -> Result<(), CacheError> {
        let head = &self.layers[layer].heads[kv_head];
        for tile in tiles.into_iter().filter(|&tile| !head.grows(tile as usize)) {
            for block in
                head.tile_planes(tile as usize).into_iter().flat_map(|planes| planes[plane as usize].blocks())
            {
                self.store.offload(block, file)?;
            }
        }
        Ok(())
    }

    /// Has a plane of some tiles of a head read from their file on another thread, to be there when they are brought.
    pub fn prefetch(
        &mut self,
        layer: usize,
        kv_head: usize,
        plane: PlaneKind,
        tiles: impl IntoIterator<Item = u32>,
    ) {
        let head = &self.layers[layer].heads[kv_head];
        let planes = tiles.into_iter().filter_map(|tile| head.tile_planes(tile as usize));
        self.store.prefetch(planes.flat_map(|planes| planes[plane as usize].blocks()));
    }

    /// Brings a plane of some tiles of a head into RAM, where they stay until they are offloaded. For tiles that are visited
    /// that is not needed.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if a tile cannot be read.
    pub fn bring(
        &mut self,
        layer: usize,
        kv_head: usize,
        plane: PlaneKind,
        tiles: impl IntoIterator<Item = u32>,
    ) -> Result<(), CacheError> {
        let head = &self.layers[layer].heads[kv_head];
        let planes = tiles.into_iter().filter_map(|tile| head.tile_planes(tile as usize));
        planes
            .flat_map(|planes| planes[plane as usize].blocks())
            .try_for_each(|block| self.store.bring(block))
    }

    /// True if a plane of a tile is in RAM as a whole.
    pub fn in_ram(&self, layer: usize, kv_head: usize, plane: PlaneKind, tile: u32) -> bool {
        let planes = self.head(layer, kv_head).tile_planes(tile as usize);
        planes.is_none_or(|planes| planes[plane as usize].blocks().all(|block| self.store.is_in_ram(block)))
    }

    /// As [`Self::in_ram`], of the tile that a row lies in.
    pub fn row_in_ram(&self, layer: usize, kv_head: usize, plane: PlaneKind, row: usize) -> bool {
        let (segment, row) = self.head(layer, kv_head).find(row);
        let planes = self.segments(layer, kv_head)[segment].planes_of(row);
        planes[plane as usize].blocks().all(|block| self.store.is_in_ram(block))
    }

    /// Bytes of RAM that the sequence's blocks take.
    pub fn used_bytes(&self) -> usize {
        self.all_segments().map(|segment| segment.used_bytes(self.store)).sum()
    }

    /// Bytes that the sequence's blocks would take in RAM besides: those that only a file holds.
    pub fn away_bytes(&self) -> usize {
        self.all_segments().map(|segment| segment.away_bytes(self.store)).sum()
    }

    /// Bytes that some tiles of a head take when they are in RAM; a block that several hold counts in equal parts.
    pub fn tile_bytes(&self, layer: usize, kv_head: usize, tiles: Range<u32>) -> usize {
        let planes = tiles.filter_map(|tile| self.head(layer, kv_head).tile_planes(tile as usize)).flatten();
        planes.flat_map(Plane::blocks).map(|block| self.store.share_bytes(block)).sum()
    }

    /// Bytes of files that the sequence's blocks take, those that are in RAM as well included.
    pub fn file_bytes(&self) -> usize {
        self.all_segments().map(|segment| segment.file_bytes(self.store)).sum()
    }

    fn all_segments(&self) -> impl Iterator<Item = &Segment> {
        self.layers.iter().flat_map(|layer| &layer.heads).flat_map(HeadCache::all_segments)
    }

    /// Keeps the first reason why something could not be read.
    fn note(&self, unread: Option<CacheError>) {
        if let Some(unread) = unread {
            // A later failure is the same disk's.
            let _ = self.unread.set(unread);
        }
    }

    fn head(&self, layer: usize, kv_head: usize) -> &HeadCache {
        &self.layers[layer].heads[kv_head]
    }
}
