//! Attention of a batch of sequences over their segments.

use std::ops::Range;

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{self, AttentionRows, AttentionScratch, AttentionShape, CachedTiles, StoredTile},
};

use crate::{KvStore, Segment, SequenceCache, head::HeadCache, spilled::ReadBlocks};

/// The sequences of a batch and the rows that each has in it.
pub trait Sequences: Sync {
    /// Sequences in the batch.
    fn count(&self) -> usize;

    /// Cache of a sequence.
    fn cache(&self, sequence: usize) -> &SequenceCache;

    /// Its query rows; the sequences' rows follow each other without gaps.
    fn rows(&self, sequence: usize) -> Range<usize>;

    /// What they are computed for.
    fn phase(&self, sequence: usize) -> Phase;
}

/// Attention of every query row over its sequence's cache at `layer`, rows of the current step included. What they visit must be
/// in RAM: [`SequenceCache::bring_visited`].
pub fn attend<S: Sequences>(
    pool: &ThreadPool,
    store: &KvStore,
    sequences: &S,
    layer: usize,
    shape: &AttentionShape,
    rows: AttentionRows<'_>,
    scratch: &mut AttentionScratch,
) {
    let cache = LayerTiles { store, sequences, layer };
    attention::attend(pool, Isa::active(), shape, rows, &cache, scratch);
}

struct LayerTiles<'a, S> {
    store: &'a KvStore,
    sequences: &'a S,
    layer: usize,
}

impl<S: Sequences> CachedTiles for LayerTiles<'_, S> {
    fn sequences(&self) -> usize {
        self.sequences.count()
    }

    fn rows(&self, sequence: usize) -> Range<usize> {
        self.sequences.rows(sequence)
    }

    fn phase(&self, sequence: usize) -> Phase {
        self.sequences.phase(sequence)
    }

    fn tiles(&self, sequence: usize, kv_head: usize) -> usize {
        let head = self.sequences.cache(sequence).head_cache(self.layer, kv_head);
        let Some(visits) = &head.visits else { return tiles(head) };
        visits.len() + head.copies.iter().map(Segment::tiles).sum::<usize>()
    }

    fn dropped(&self, sequence: usize, kv_head: usize) -> usize {
        self.sequences.cache(sequence).head(self.layer, kv_head).first().map_or(0, Segment::dropped_tiles)
    }

    fn tile(&self, sequence: usize, kv_head: usize, index: usize) -> Option<StoredTile<'_>> {
        let head = self.sequences.cache(sequence).head_cache(self.layer, kv_head);
        match &head.visits {
            Some(visits) if index >= visits.len() => tile(self.store, &head.copies, index - visits.len()),
            Some(visits) => tile(self.store, &head.segments, visits[index] as usize),
            None => tile(self.store, &head.segments, index),
        }
    }
}

/// All tiles of one sequence at one layer, whichever its queries visit.
pub(crate) struct AllTiles<'a, B> {
    pub(crate) blocks: &'a B,
    pub(crate) heads: &'a [HeadCache],
}

impl<B: ReadBlocks> CachedTiles for AllTiles<'_, B> {
    fn sequences(&self) -> usize {
        1
    }

    fn rows(&self, _sequence: usize) -> Range<usize> {
        0..0
    }

    fn phase(&self, _sequence: usize) -> Phase {
        Phase::Decode
    }

    fn tiles(&self, _sequence: usize, kv_head: usize) -> usize {
        tiles(&self.heads[kv_head])
    }

    fn tile(&self, _sequence: usize, kv_head: usize, index: usize) -> Option<StoredTile<'_>> {
        tile(self.blocks, &self.heads[kv_head].segments, index)
    }
}

/// One past the index of a head's last tile, counted over its segments.
pub(crate) fn tiles(head: &HeadCache) -> usize {
    head.segments.iter().map(|segment| segment.tiles()).sum()
}

fn tile<'a>(
    blocks: &'a impl ReadBlocks,
    segments: &'a [Segment],
    mut index: usize,
) -> Option<StoredTile<'a>> {
    for segment in segments {
        if index < segment.tiles() {
            return segment.tile(blocks, index);
        }
        index -= segment.tiles();
    }
    None
}
