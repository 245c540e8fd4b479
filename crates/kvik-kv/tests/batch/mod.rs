//! Sequences for attention in tests.

use std::ops::Range;

use kvik_kernels::Phase;
use kvik_kv::{SequenceCache, Sequences};

/// Caches with their query rows, all computed for one phase.
pub struct Batch<'a>(pub Vec<(&'a SequenceCache, Range<usize>)>, pub Phase);

impl Sequences for Batch<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn cache(&self, sequence: usize) -> &SequenceCache {
        self.0[sequence].0
    }

    fn rows(&self, sequence: usize) -> Range<usize> {
        self.0[sequence].1.clone()
    }

    fn phase(&self, _sequence: usize) -> Phase {
        self.1
    }
}
