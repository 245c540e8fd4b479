//! A prompt or drafts in any chunks, on any number of threads, gives the same bits: heads as real models have them.

mod batch;

use std::ops::Range;

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{AttentionRows, AttentionScratch, AttentionShape, Reach},
};
use kvik_kv::{KvShape, KvStore, LayerShape, attend};
use proptest::prelude::*;

use batch::Batch;

#[derive(Debug, Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
}

fn rows(what: usize, range: Range<usize>, width: usize) -> Vec<f32> {
    let number = |row: usize, column: usize| {
        let x = (row * 7919 + column * 104_729 + what * 1_299_709) as u64;
        let x = (x ^ 0x9e37).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) % 1024) as f32 / 256.0 - 2.0
    };
    range.flat_map(|row| (0..width).map(move |column| number(row, column))).collect()
}

/// The attention output of all tokens of a sequence that comes in `chunks`, as rows of `phase`.
fn run(phase: Phase, threads: usize, chunks: &[usize], heads: Heads) -> Vec<u32> {
    let Heads { heads, kv_heads, dim, window } = heads;
    let layer = LayerShape { kv_heads, key_dim: dim, value_dim: dim, window };
    let shape = AttentionShape {
        heads,
        kv_heads,
        tile: layer.tile(),
        scale: 1.0 / (dim as f32).sqrt(),
        reach: Reach { causal: true, window: window.map(|w| w as u32) },
    };
    let total: usize = chunks.iter().sum();
    let pool = ThreadPool::new(threads);
    let kv_shape = KvShape::unrotated(vec![layer]);
    let mut store = KvStore::new(kv_shape, 1, total, chunks.iter().copied().max().unwrap_or(1)).unwrap();
    let mut cache = store.sequence();
    let mut scratch = AttentionScratch::new(threads, &shape, total);
    let mut all = Vec::new();
    for &chunk in chunks {
        let range = cache.len()..cache.len() + chunk;
        cache.reserve(&mut store, chunk).unwrap();
        let (keys, values) = (rows(1, range.clone(), kv_heads * dim), rows(2, range.clone(), kv_heads * dim));
        cache.append(&pool, &mut store, 0, &keys, &values);
        let positions: Vec<u32> = range.clone().map(|p| p as u32).collect();
        let queries = rows(3, range, heads * dim);
        let mut out = vec![0.0; chunk * heads * dim];
        let rows =
            AttentionRows { queries: &queries, positions: &positions, out: &mut out, log_sum_exp: None };
        attend(&pool, &store, &Batch(vec![(&cache, 0..chunk)], phase), 0, &shape, rows, &mut scratch);
        cache.commit(&pool, &mut store, chunk, phase).unwrap();
        all.extend(out.iter().map(|x| x.to_bits()));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn chunks_and_threads_leave_no_trace(
        chunks in prop::collection::vec(1usize..300, 1..6),
        group in 1usize..17,
        kv_heads in 1usize..3,
        dim in prop::sample::select(vec![40, 64, 80, 128, 256]),
        window in prop::option::of(1usize..300),
    ) {
        let heads = Heads { heads: group * kv_heads, kv_heads, dim, window };
        let total: usize = chunks.iter().sum();
        for phase in [Phase::Prefill, Phase::Decode] {
            let whole = run(phase, 1, &[total], heads);
            prop_assert!(run(phase, 1, &chunks, heads) == whole);
            prop_assert!(run(phase, 3, &chunks, heads) == whole);
            if total > 1 {
                prop_assert!(run(phase, 2, &[total - 1, 1], heads) == whole);
            }
        }
    }
}

/// Past what is folded without a merge.
#[test]
fn a_long_sequence_is_cut_without_a_trace() {
    let heads = Heads { heads: 2, kv_heads: 1, dim: 64, window: None };
    for phase in [Phase::Prefill, Phase::Decode] {
        let whole = run(phase, 1, &[4300], heads);
        assert!(run(phase, 2, &[4100, 150, 49, 1], heads) == whole);
    }
}
