//! One attention layer of drawn numbers, and a sequence on it under some pipeline.

#![allow(dead_code, reason = "each test uses its part")]

#[path = "../pass/mod.rs"]
mod pass;

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{AttentionScratch, AttentionShape, PairLayout, Reach, Rotary},
};
use kvik_kv::{
    CacheError, Evidence, KvShape, KvStore, LayerShape, Method, OpenCache, Pipeline, SequenceCache,
};
use serde::Deserialize;

use pass::{New, layer_pass};

/// Tokens that the store has room for.
pub const CAPACITY: usize = 1000;

/// What the layer is made of.
#[derive(Clone, Deserialize)]
pub struct Setting {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub scale: f32,
    pub frequencies: Vec<f32>,
}

/// A number in -2..2 for (what, row, column), exactly representable in bf16; the golden file's script has the same.
fn number(what: u64, row: usize, column: usize) -> f32 {
    let mut x = what.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (row as u64) << 20 ^ column as u64;
    for _ in 0..3 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    ((x >> 40) % 256) as f32 / 64.0 - 2.0
}

/// Rows of each head, positions and sums.
pub type Kept = Vec<Vec<(u32, f32)>>;

/// Watches what is left after each step.
#[derive(Clone, Default)]
pub struct Look(Arc<Mutex<Kept>>);

impl Look {
    pub fn take(&self) -> Kept {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn look(&self, cache: &OpenCache<'_>) {
        let kept = cache.heads().into_iter().map(|(layer, kv_head)| {
            let sums = &cache.statistics(layer, kv_head).accumulated;
            let positions = cache.positions(layer, kv_head);
            // Rows that no query has seen yet may have no entry.
            let sums = sums.iter().copied().chain(std::iter::repeat(0.0));
            let mut rows: Vec<(u32, f32)> = positions.into_iter().zip(sums).collect();
            rows.sort_by_key(|row| row.0);
            rows
        });
        *self.0.lock().unwrap() = kept.collect();
    }
}

impl Method for Look {
    fn evidence(&self) -> Evidence {
        Evidence { accumulated: true, ..Evidence::NONE }
    }
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.look(cache);
        Ok(())
    }
    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.look(cache);
        Ok(())
    }
    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

/// The golden file's layer, and a sequence on it.
pub struct Run {
    pub pool: ThreadPool,
    pub store: KvStore,
    pub cache: SequenceCache,
    pub look: Look,
    shape: AttentionShape,
    rotary: Option<Arc<Rotary>>,
    seed: u64,
}

impl Run {
    /// A sequence under `pipeline`, with something that watches behind it.
    pub fn new(setting: &Setting, rotated: bool, seed: u64, pipeline: &str) -> Self {
        let mut run = Self::unwatched(setting, rotated, seed, pipeline);
        let mut methods = Pipeline::parse(pipeline).unwrap().methods(run.store.shape()).unwrap();
        methods.push(Box::new(run.look.clone()));
        run.cache = run.store.sequence_of(methods);
        run
    }

    /// A sequence under `pipeline` alone.
    pub fn unwatched(setting: &Setting, rotated: bool, seed: u64, pipeline: &str) -> Self {
        let layer = LayerShape {
            kv_heads: setting.kv_heads,
            key_dim: setting.dim,
            value_dim: setting.dim,
            window: None,
        };
        let rotary = rotated.then(|| {
            let frequencies = setting.frequencies.clone();
            Arc::new(Rotary { frequencies, factor: 1.0, layout: PairLayout::Halves })
        });
        let kv_shape = KvShape { rotary: vec![rotary.clone()], ..KvShape::unrotated(vec![layer]) };
        let store = KvStore::new(kv_shape, 1, CAPACITY, CAPACITY).unwrap();
        let look = Look::default();
        let cache = store.sequence_with(&Pipeline::parse(pipeline).unwrap()).unwrap();
        let shape = AttentionShape {
            heads: setting.heads,
            kv_heads: setting.kv_heads,
            tile: layer.tile(),
            scale: setting.scale,
            reach: Reach::CAUSAL,
        };
        Self { pool: ThreadPool::new(2), store, cache, look, shape, rotary, seed: 10 * seed }
    }

    fn draw(&self, what: u64, range: Range<usize>, heads: usize, rotated: bool) -> Vec<f32> {
        let dim = self.shape.tile.key_dim;
        let row = |row: usize| (0..heads * dim).map(move |column| number(self.seed + what, row, column));
        let mut rows: Vec<f32> = range.clone().flat_map(row).collect();
        if let Some(rotary) = self.rotary.as_ref().filter(|_| rotated) {
            for (position, row) in range.zip(rows.chunks_exact_mut(heads * dim)) {
                row.chunks_exact_mut(dim).for_each(|head| rotary.rotate(head, position as u32));
            }
        }
        rows
    }

    /// One pass; `[tokens, heads, dim]`.
    pub fn step(&mut self, tokens: usize, phase: Phase) -> Vec<f32> {
        let range = self.cache.len()..self.cache.len() + tokens;
        let new = New {
            keys: self.draw(1, range.clone(), self.shape.kv_heads, true),
            values: self.draw(2, range.clone(), self.shape.kv_heads, false),
            queries: self.draw(3, range, self.shape.heads, true),
        };
        let Self { pool, store, cache, shape, .. } = self;
        cache.reserve(store, tokens).unwrap();
        let mut scratch = AttentionScratch::new(pool.threads(), shape, CAPACITY);
        let out = layer_pass(pool, store, &mut [cache], 0, shape, phase, &new, &mut scratch).unwrap();
        cache.commit(pool, store, tokens, phase).unwrap();
        out
    }

    pub fn end_of_prompt(&mut self) {
        self.cache.end_of_prompt(&self.pool, &mut self.store).unwrap();
    }
}
