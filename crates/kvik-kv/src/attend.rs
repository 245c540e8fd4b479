//! Attention of a batch of sequences over their segments.

use std::ops::Range;

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{self, AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Tile},
};

use crate::{KvStore, Segment, SequenceCache};

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

/// Attention of every query row over its sequence's cache at `layer`, rows of the current step included.
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
        let segments = self.sequences.cache(sequence).head(self.layer, kv_head);
        segments.iter().map(|segment| segment.tiles()).sum()
    }

    fn dropped(&self, sequence: usize, kv_head: usize) -> usize {
        self.sequences.cache(sequence).head(self.layer, kv_head).first().map_or(0, Segment::dropped_tiles)
    }

    fn tile(&self, sequence: usize, kv_head: usize, mut index: usize) -> Option<Tile<'_>> {
        for segment in self.sequences.cache(sequence).head(self.layer, kv_head) {
            if index < segment.tiles() {
                return segment.tile(self.store, index);
            }
            index -= segment.tiles();
        }
        None
    }
}
