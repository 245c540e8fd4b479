//! One layer of a pass through all hooks of the cache, in the order in which a model calls them.

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{AttentionRows, AttentionScratch, AttentionShape},
};
use kvik_kv::{CacheError, KvStore, SequenceCache, StepQueries, attend};

#[path = "../batch/mod.rs"]
mod batch;

use batch::Batch;

/// New rows of one layer, those of the sequences behind each other.
pub struct New {
    /// `[sequences · tokens, kv_heads, key_dim]`.
    pub keys: Vec<f32>,
    /// `[sequences · tokens, kv_heads, value_dim]`.
    pub values: Vec<f32>,
    /// `[sequences · tokens, heads, key_dim]`.
    pub queries: Vec<f32>,
}

/// Appends `new` to `caches`, equally many tokens to each, for which room was reserved; what they attend to,
/// `[sequences · tokens, heads, value_dim]`.
#[allow(clippy::too_many_arguments)]
pub fn layer_pass(
    pool: &ThreadPool,
    store: &mut KvStore,
    caches: &mut [&mut SequenceCache],
    layer: usize,
    shape: &AttentionShape,
    phase: Phase,
    new: &New,
    scratch: &mut AttentionScratch,
) -> Result<Vec<f32>, CacheError> {
    let New { keys, values, queries } = new;
    let (heads, tile) = (shape.heads, shape.tile);
    let (key_width, value_width) = (shape.kv_heads * tile.key_dim, shape.kv_heads * tile.value_dim);
    let tokens = keys.len() / key_width / caches.len();
    let of = |index: usize| index * tokens..(index + 1) * tokens;
    let positions: Vec<u32> =
        caches.iter().flat_map(|cache| cache.len()..cache.len() + tokens).map(|p| p as u32).collect();
    let step = |index: usize| StepQueries {
        shape,
        phase,
        queries: &queries[index * tokens * heads * tile.key_dim..][..tokens * heads * tile.key_dim],
        positions: &positions[of(index)],
    };
    for (index, cache) in caches.iter_mut().enumerate() {
        let (keys, values) = (&keys[index * tokens * key_width..], &values[index * tokens * value_width..]);
        cache.append(pool, store, layer, &keys[..tokens * key_width], &values[..tokens * value_width]);
    }
    for (index, cache) in caches.iter_mut().enumerate() {
        cache.before_attention(pool, store, layer, step(index))?;
    }
    for cache in caches.iter_mut() {
        cache.bring_visited(store, layer)?;
    }
    let mut out = vec![0.0; positions.len() * heads * tile.value_dim];
    let mut log_sum_exp = vec![0.0; positions.len() * heads];
    let rows =
        AttentionRows { queries, positions: &positions, out: &mut out, log_sum_exp: Some(&mut log_sum_exp) };
    let batch = caches.iter().enumerate().map(|(index, cache)| (&**cache, of(index))).collect();
    attend(pool, store, &Batch(batch, phase), layer, shape, rows, scratch);
    for (index, cache) in caches.iter_mut().enumerate() {
        let own = &log_sum_exp[index * tokens * heads..][..tokens * heads];
        cache.observe(pool, store, layer, step(index), own)?;
    }
    Ok(out)
}
