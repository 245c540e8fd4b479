//! The cache against brute force: chunks, threads, windows, segments of every kind, and what happens to memory.

mod batch;

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{AttentionRows, AttentionScratch, AttentionShape, Reach},
};
use kvik_kv::{KvShape, KvStore, LayerShape, Segment, SegmentRow, SequenceCache, attend};
use proptest::prelude::*;
use std::ops::Range;

use batch::Batch;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const KEY_DIM: usize = 6;
const VALUE_DIM: usize = 10;

fn shape(window: Option<usize>) -> KvShape {
    KvShape::unrotated(vec![LayerShape {
        kv_heads: KV_HEADS,
        key_dim: KEY_DIM,
        value_dim: VALUE_DIM,
        window,
    }])
}

fn attention_shape(window: Option<usize>) -> AttentionShape {
    AttentionShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        tile: shape(None).layers[0].tile(),
        scale: 0.5,
        reach: Reach { causal: true, window: window.map(|w| w as u32) },
    }
}

/// A number in -2..2 for (what, row, column), exactly representable in bf16.
fn number(what: u64, row: usize, column: usize) -> f32 {
    let mut x = what.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (row as u64) << 20 ^ column as u64;
    for _ in 0..3 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    ((x >> 40) % 256) as f32 / 64.0 - 2.0
}

fn rows(what: u64, range: Range<usize>, width: usize) -> Vec<f32> {
    range.flat_map(|row| (0..width).map(move |column| number(what, row, column))).collect()
}

/// Appends `range` of the test sequence in one step and returns its attention output.
fn step(
    pool: &ThreadPool,
    store: &mut KvStore,
    cache: &mut SequenceCache,
    range: Range<usize>,
    window: Option<usize>,
    scratch: &mut AttentionScratch,
) -> Vec<f32> {
    step_as(Phase::Prefill, pool, store, cache, range, window, scratch)
}

/// [`step`] for rows of `phase`.
fn step_as(
    phase: Phase,
    pool: &ThreadPool,
    store: &mut KvStore,
    cache: &mut SequenceCache,
    range: Range<usize>,
    window: Option<usize>,
    scratch: &mut AttentionScratch,
) -> Vec<f32> {
    let n = range.len();
    cache.reserve(store, n).unwrap();
    cache.append(
        pool,
        store,
        0,
        &rows(1, range.clone(), KV_HEADS * KEY_DIM),
        &rows(2, range.clone(), KV_HEADS * VALUE_DIM),
    );
    let positions: Vec<u32> = range.clone().map(|p| p as u32).collect();
    let mut out = vec![0.0; n * HEADS * VALUE_DIM];
    let batch = Batch(vec![(cache, 0..n)], phase);
    let queries = rows(3, range, HEADS * KEY_DIM);
    let rows = AttentionRows { queries: &queries, positions: &positions, out: &mut out, log_sum_exp: None };
    attend(pool, store, &batch, 0, &attention_shape(window), rows, scratch);
    cache.commit(pool, store, n, phase).unwrap();
    out
}

fn run(threads: usize, chunks: &[usize], window: Option<usize>) -> Vec<f32> {
    let total: usize = chunks.iter().sum();
    let pool = ThreadPool::new(threads);
    let mut store = KvStore::new(shape(window), 1, total, chunks.iter().copied().max().unwrap_or(1)).unwrap();
    let mut cache = store.sequence();
    let mut scratch = AttentionScratch::new(threads, &attention_shape(window), total);
    let mut out = Vec::new();
    for &chunk in chunks {
        let start = cache.len();
        out.extend(step(&pool, &mut store, &mut cache, start..start + chunk, window, &mut scratch));
    }
    out
}

/// Attention in f64 of a query at `position` with `head` over `(key, value, bias)` rows.
fn brute_force(query: &[f32], seen: &[(Vec<f32>, Vec<f32>, f32)]) -> Vec<f64> {
    let weight = |key: &[f32], bias: f32| {
        let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
        (dot * 0.5 + f64::from(bias)).exp()
    };
    let weights: Vec<f64> = seen.iter().map(|(key, _, bias)| weight(key, *bias)).collect();
    let sum: f64 = weights.iter().sum();
    let column = |d: usize| seen.iter().zip(&weights).map(|(row, w)| w / sum * f64::from(row.1[d])).sum();
    (0..VALUE_DIM).map(column).collect()
}

fn slice(what: u64, row: usize, head: usize, dim: usize) -> Vec<f32> {
    (0..dim).map(|d| number(what, row, head * dim + d)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn chunks_and_threads_leave_no_trace(
        chunks in prop::collection::vec(1usize..300, 1..8),
        window in prop::option::of(1usize..200),
    ) {
        let total: usize = chunks.iter().sum();
        let whole = run(1, &[total], window);
        prop_assert_eq!(&run(1, &chunks, window), &whole);
        prop_assert_eq!(&run(3, &chunks, window), &whole);
        // The last token alone, as in decoding, over a long cache: cut along the cache, and still the same bits.
        if total > 1 {
            prop_assert_eq!(&run(2, &[total - 1, 1], window), &whole);
        }
        for position in [0, total / 2, total - 1] {
            for head in 0..HEADS {
                let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
                let kv_head = head / (HEADS / KV_HEADS);
                let seen: Vec<_> = (first..=position)
                    .map(|row| (slice(1, row, kv_head, KEY_DIM), slice(2, row, kv_head, VALUE_DIM), 0.0))
                    .collect();
                let want = brute_force(&slice(3, position, head, KEY_DIM), &seen);
                let got = &whole[(position * HEADS + head) * VALUE_DIM..][..VALUE_DIM];
                for (&got, want) in got.iter().zip(want) {
                    prop_assert!((f64::from(got) - want).abs() < 1e-2, "{got} {want}");
                }
            }
        }
    }
}

#[test]
fn segments_of_chosen_rows_stand_beside_the_growing_one_and_heads_differ() {
    let pool = ThreadPool::new(2);
    let mut store = KvStore::new(shape(None), 2, 400, 400).unwrap();
    let mut cache = store.sequence();
    let mut scratch = AttentionScratch::new(2, &attention_shape(None), 400);
    step(&pool, &mut store, &mut cache, 0..150, None, &mut scratch);

    // Head 0 gets 70 rows that stand for several tokens each, head 1 a single one: ragged, biased, out of order.
    let chosen: [Vec<usize>; KV_HEADS] = [(0..70).map(|i| 1000 + (i * 37) % 70).collect(), vec![2000]];
    for (kv_head, chosen) in chosen.iter().enumerate() {
        let data: Vec<_> = chosen
            .iter()
            .map(|&r| (slice(1, r, kv_head, KEY_DIM), slice(2, r, kv_head, VALUE_DIM)))
            .collect();
        let segment_rows: Vec<SegmentRow> = data
            .iter()
            .enumerate()
            .map(|(i, (key, value))| SegmentRow {
                key,
                value,
                position: (i % 3) as u32,
                bias: (i % 5) as f32 * 0.4,
            })
            .collect();
        let segment = Segment::from_rows(&mut store, 0, &segment_rows).unwrap();
        assert_eq!(segment.len(), chosen.len());
        cache.insert_segment(0, kv_head, segment);
    }

    let out = step(&pool, &mut store, &mut cache, 150..152, None, &mut scratch);
    for (row, position) in [150usize, 151].into_iter().enumerate() {
        for head in 0..HEADS {
            let kv_head = head / (HEADS / KV_HEADS);
            let row_of =
                |r: usize, bias: f32| (slice(1, r, kv_head, KEY_DIM), slice(2, r, kv_head, VALUE_DIM), bias);
            let mut seen: Vec<_> = (0..=position).map(|r| row_of(r, 0.0)).collect();
            seen.extend(chosen[kv_head].iter().enumerate().map(|(i, &r)| row_of(r, (i % 5) as f32 * 0.4)));
            let want = brute_force(&slice(3, position, head, KEY_DIM), &seen);
            let got = &out[(row * HEADS + head) * VALUE_DIM..][..VALUE_DIM];
            for (&got, want) in got.iter().zip(want) {
                assert!((f64::from(got) - want).abs() < 1e-2, "{got} {want}");
            }
        }
    }
}

#[test]
fn a_batch_of_sequences_gives_each_what_it_gets_alone() {
    let pool = ThreadPool::new(2);
    let mut store = KvStore::new(shape(None), 3, 700, 700).unwrap();
    let mut scratch = AttentionScratch::new(2, &attention_shape(None), 700);
    let lengths = [3usize, 600, 130];
    let mut caches: Vec<SequenceCache> = lengths.iter().map(|_| store.sequence()).collect();
    let mut alone = Vec::new();
    for (cache, &len) in caches.iter_mut().zip(&lengths) {
        step(&pool, &mut store, cache, 0..len - 1, None, &mut scratch);
        alone.push(step_as(Phase::Decode, &pool, &mut store, cache, len - 1..len, None, &mut scratch));
    }
    let batch = Batch(caches.iter().enumerate().map(|(i, cache)| (cache, i..i + 1)).collect(), Phase::Decode);
    let queries: Vec<f32> = lengths.iter().flat_map(|&len| rows(3, len - 1..len, HEADS * KEY_DIM)).collect();
    let positions: Vec<u32> = lengths.iter().map(|&len| len as u32 - 1).collect();
    let mut out = vec![0.0; 3 * HEADS * VALUE_DIM];
    let rows = AttentionRows { queries: &queries, positions: &positions, out: &mut out, log_sum_exp: None };
    attend(&pool, &store, &batch, 0, &attention_shape(None), rows, &mut scratch);
    assert_eq!(out, alone.concat());
}

#[test]
fn truncated_and_dropped_sequences_give_their_blocks_back() {
    let pool = ThreadPool::new(1);
    let mut store = KvStore::new(shape(None), 2, 256, 256).unwrap();
    let mut scratch = AttentionScratch::new(1, &attention_shape(None), 256);
    let tile = store.shape().layers[0].tile().tile_bytes();
    let mut cache = store.sequence();
    let whole = step(&pool, &mut store, &mut cache, 0..200, None, &mut scratch);
    assert_eq!(store.used_bytes(), KV_HEADS * 4 * tile);
    assert_eq!(cache.used_bytes(&store), store.used_bytes());
    assert_eq!(cache.truncate(&mut store, 100), 100);
    assert_eq!(store.used_bytes(), KV_HEADS * 2 * tile);
    let again = step(&pool, &mut store, &mut cache, 100..200, None, &mut scratch);
    assert_eq!(again, whole[100 * HEADS * VALUE_DIM..]);
    drop(cache);
    assert_eq!(store.used_bytes(), 0);

    // Two sequences fill the store; a third finds no room for as much until one leaves.
    let mut a = store.sequence();
    let mut b = store.sequence();
    a.reserve(&mut store, 256).unwrap();
    b.reserve(&mut store, 256).unwrap();
    let mut c = store.sequence();
    let error = c.reserve(&mut store, 256).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    drop(a);
    c.reserve(&mut store, 256).unwrap();
}

#[test]
fn a_thousand_sequences_leave_nothing_behind() {
    let pool = ThreadPool::new(1);
    let mut store = KvStore::new(shape(Some(70)), 1, 300, 300).unwrap();
    let mut scratch = AttentionScratch::new(1, &attention_shape(None), 300);
    for round in 0..1000 {
        let mut cache = store.sequence();
        step(&pool, &mut store, &mut cache, 0..1 + round % 150, Some(70), &mut scratch);
    }
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn a_window_keeps_memory_flat_and_refuses_to_go_back_beyond_it() {
    let pool = ThreadPool::new(1);
    let window = Some(64);
    let mut store = KvStore::new(shape(window), 1, 2000, 16).unwrap();
    let mut scratch = AttentionScratch::new(1, &attention_shape(window), 2000);
    let mut cache = store.sequence();
    let mut most = 0;
    for start in (0..1600).step_by(16) {
        step(&pool, &mut store, &mut cache, start..start + 16, window, &mut scratch);
        most = most.max(store.used_bytes());
    }
    let tile = store.shape().layers[0].tile().tile_bytes();
    assert!(most <= KV_HEADS * 3 * tile, "{most} bytes for a window of one tile");
    assert_eq!(cache.truncate(&mut store, 1599), 1599);
    assert_eq!(cache.truncate(&mut store, 1000), 0, "rows that position 1000 needs are gone");
    assert_eq!(store.used_bytes(), 0);
    step(&pool, &mut store, &mut cache, 0..16, window, &mut scratch);
    assert_eq!(cache.len(), 16);
}
