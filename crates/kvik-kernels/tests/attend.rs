//! Attention of a batch: prompt rows and decoded rows, on every instruction set, against a brute-force softmax in f64.

use std::ops::Range;

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{
        AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Positions, Reach, StoredTile,
        TILE_TOKENS, Tile, TileShape, attend,
    },
};
use proptest::prelude::*;

/// A number in -2..2 for (what, row, column), exactly representable in bf16.
fn number(what: u64, row: usize, column: usize) -> f32 {
    let mut x = what.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (row as u64) << 20 ^ column as u64;
    for _ in 0..3 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    ((x >> 40) % 256) as f32 / 64.0 - 2.0
}

/// How the positions of cached tokens and their scores come about.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Consecutive positions.
    Plain,
    /// Each token its own position, and a bias.
    Chosen,
    /// Consecutive; later tokens score ever higher, so that running maxima rise all the time.
    Rising,
}

/// A cache of plain numbers, one sequence.
#[derive(Debug, Clone)]
struct Cache {
    shape: AttentionShape,
    kind: Kind,
    /// Tokens of each tile.
    lens: Vec<usize>,
    /// `[kv_head][tile]`.
    tiles: Vec<Vec<(Vec<u16>, Vec<u16>)>>,
    /// `[tile]`, padded.
    positions: Vec<Vec<u32>>,
    bias: Vec<Vec<f32>>,
}

impl Cache {
    fn new(shape: AttentionShape, kind: Kind, lens: &[usize]) -> Self {
        let mut cache = Self {
            shape,
            kind,
            lens: lens.to_vec(),
            tiles: Vec::new(),
            positions: Vec::new(),
            bias: Vec::new(),
        };
        for kv_head in 0..shape.kv_heads {
            let tiles = (0..lens.len()).map(|tile| {
                let mut keys = vec![0; shape.tile.key_len()];
                let mut values = vec![0; shape.tile.value_len()];
                // Slots past the length hold what a longer sequence has left there.
                for slot in 0..TILE_TOKENS {
                    let (key, value) = cache.token(kv_head, tile, slot);
                    shape.tile.write(&mut keys, &mut values, slot, &key, &value);
                }
                (keys, values)
            });
            let tiles = tiles.collect();
            cache.tiles.push(tiles);
        }
        for tile in 0..lens.len() {
            let slots = |f: &dyn Fn(usize) -> u32| (0..TILE_TOKENS).map(f).collect::<Vec<u32>>();
            let start: usize = lens[..tile].iter().sum();
            cache.positions.push(slots(&|slot| match kind {
                Kind::Chosen => (number(7, tile, slot) * 64.0 + 128.0) as u32,
                _ => (start + slot) as u32,
            }));
            cache.bias.push((0..TILE_TOKENS).map(|slot| number(8, tile, slot)).collect());
        }
        cache
    }

    fn token(&self, kv_head: usize, tile: usize, slot: usize) -> (Vec<f32>, Vec<f32>) {
        let row = tile * TILE_TOKENS + slot;
        let numbers = |what: u64, dim: usize| (0..dim).map(move |d| number(what, row, kv_head << 10 | d));
        let mut key: Vec<f32> = numbers(1, self.shape.tile.key_dim).collect();
        if self.kind == Kind::Rising {
            // Queries of such a cache have a large first dim.
            key[0] = (row / 4) as f32;
        }
        (key, numbers(2, self.shape.tile.value_dim).collect())
    }

    fn query(&self, row: usize, head: usize) -> Vec<f32> {
        let mut query: Vec<f32> =
            (0..self.shape.tile.key_dim).map(|d| number(3, row, head << 10 | d)).collect();
        if self.kind == Kind::Rising {
            query[0] = 1.0 + (row % 3) as f32;
        }
        query
    }

    /// Attention of query `row` at `position`.
    fn brute_force(&self, row: usize, head: usize, position: u32) -> Vec<f64> {
        let kv_head = head / self.shape.group();
        let (first, last) = self.shape.reach.range(position);
        let query = self.query(row, head);
        let mut seen = Vec::new();
        for tile in 0..self.lens.len() {
            for slot in 0..self.lens[tile] {
                if (first..=last).contains(&self.positions[tile][slot]) {
                    let (key, value) = self.token(kv_head, tile, slot);
                    let dot: f64 = query.iter().zip(&key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let bias = if self.kind == Kind::Chosen { self.bias[tile][slot] } else { 0.0 };
                    seen.push((dot * f64::from(self.shape.scale) + f64::from(bias), value));
                }
            }
        }
        let max = seen.iter().map(|(score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = seen.iter().map(|(score, _)| (score - max).exp()).sum();
        let mut out = vec![0.0; self.shape.tile.value_dim];
        for (score, value) in &seen {
            for (out, &value) in out.iter_mut().zip(value) {
                *out += (score - max).exp() / sum * f64::from(value);
            }
        }
        out
    }
}

/// A cache that several sequences share, each with a phase of its own.
struct Batch<'a>(&'a Cache, &'a [(Range<usize>, Phase)]);

impl CachedTiles for Batch<'_> {
    fn sequences(&self) -> usize {
        self.1.len()
    }
    fn rows(&self, sequence: usize) -> Range<usize> {
        self.1[sequence].0.clone()
    }
    fn phase(&self, sequence: usize) -> Phase {
        self.1[sequence].1
    }
    fn tiles(&self, _sequence: usize, _kv_head: usize) -> usize {
        self.0.lens.len()
    }
    fn tile(&self, _sequence: usize, kv_head: usize, index: usize) -> Option<StoredTile<'_>> {
        let (keys, values) = &self.0.tiles[kv_head][index];
        let chosen = self.0.kind == Kind::Chosen;
        let tile = Tile {
            keys,
            values,
            len: self.0.lens[index],
            positions: if chosen {
                Positions::Each(&self.0.positions[index])
            } else {
                Positions::From(self.0.positions[index][0])
            },
            bias: chosen.then_some(&self.0.bias[index][..]),
        };
        Some(tile.into())
    }
}

/// Attention of query rows `rows` (of which `positions` says where they are), as one sequence for each of `parts`.
fn run(
    isa: Isa,
    threads: usize,
    cache: &Cache,
    rows: Range<usize>,
    positions: &[u32],
    parts: &[(Range<usize>, Phase)],
) -> Vec<f32> {
    let shape = cache.shape;
    let queries: Vec<f32> =
        rows.clone().flat_map(|row| (0..shape.heads).flat_map(move |head| cache.query(row, head))).collect();
    let mut out = vec![f32::NAN; rows.len() * shape.heads * shape.tile.value_dim];
    let mut scratch = AttentionScratch::new(threads, &shape, cache.lens.len() * TILE_TOKENS);
    let rows =
        AttentionRows { queries: &queries, positions: &positions[rows], out: &mut out, log_sum_exp: None };
    attend(&ThreadPool::new(threads), isa, &shape, rows, &Batch(cache, parts), &mut scratch);
    out
}

fn shape(heads: (usize, usize), dims: (usize, usize), reach: Reach) -> AttentionShape {
    let tile = TileShape { key_dim: dims.0, value_dim: dims.1 };
    AttentionShape {
        heads: heads.0 * heads.1,
        kv_heads: heads.1,
        tile,
        scale: 0.5 / (dims.0 as f32).sqrt(),
        reach,
    }
}

fn dims() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        (1usize..140, 1usize..140),
        prop::sample::select(vec![
            (40, 40),
            (64, 64),
            (80, 80),
            (96, 96),
            (128, 128),
            (160, 160),
            (192, 128),
            (256, 256)
        ]),
    ]
}

fn caches() -> impl Strategy<Value = Cache> {
    let reach =
        (any::<bool>(), prop::option::of(1u32..200)).prop_map(|(causal, window)| Reach { causal, window });
    let kind = prop::sample::select(vec![Kind::Plain, Kind::Chosen, Kind::Rising]);
    let lens = prop_oneof![
        // As a sequence grows, and as segments of chosen tokens may be.
        (1usize..5, 1usize..=TILE_TOKENS)
            .prop_map(|(full, rest)| [vec![TILE_TOKENS; full], vec![rest]].concat()),
        prop::collection::vec(0..=TILE_TOKENS, 1..5),
    ];
    ((1usize..17, 1usize..3), dims(), reach, kind, lens)
        .prop_map(|(heads, dims, reach, kind, lens)| Cache::new(shape(heads, dims, reach), kind, &lens))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn rows_of_either_phase_agree_with_brute_force(
        cache in caches(),
        positions in prop::collection::vec(0u32..330, 1..40),
        phase in prop::sample::select(vec![Phase::Prefill, Phase::Decode]),
    ) {
        for isa in Isa::available() {
            let rows = 0..positions.len();
            let out = run(isa, 2, &cache, rows.clone(), &positions, &[(rows.clone(), phase)]);
            for row in rows {
                for head in 0..cache.shape.heads {
                    let want = cache.brute_force(row, head, positions[row]);
                    let dim = cache.shape.tile.value_dim;
                    let got = &out[(row * cache.shape.heads + head) * dim..][..dim];
                    for (&got, want) in got.iter().zip(want) {
                        // Queries are rounded to bf16 after the scale, weights too; a large score is off by more.
                        prop_assert!((f64::from(got) - want).abs() < 3e-2, "{isa} {phase:?} row {row}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn one_decoded_token_agrees_with_brute_force(cache in caches(), position in 0u32..330, threads in 1usize..4) {
        for isa in Isa::available() {
            let out = run(isa, threads, &cache, 0..1, &[position], &[(0..1, Phase::Decode)]);
            for (head, got) in out.chunks(cache.shape.tile.value_dim).enumerate() {
                for (&got, want) in got.iter().zip(cache.brute_force(0, head, position)) {
                    prop_assert!((f64::from(got) - want).abs() < 3e-2, "{isa} head {head}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bits_alone_in_any_batch_and_on_any_number_of_threads(
        cache in caches(),
        positions in prop::collection::vec(0u32..330, 2..40),
        cut in 0usize..40,
        threads in 1usize..5,
    ) {
        let (rows, cut) = (0..positions.len(), cut % positions.len());
        let width = cache.shape.heads * cache.shape.tile.value_dim;
        for isa in Isa::available() {
            for phase in [Phase::Prefill, Phase::Decode] {
                let whole = run(isa, 1, &cache, rows.clone(), &positions, &[(rows.clone(), phase)]);
                let parts = [(0..cut, phase), (cut..rows.end, phase)];
                let cut_up = run(isa, threads, &cache, rows.clone(), &positions, &parts);
                prop_assert_eq!(bits(&cut_up), bits(&whole));
                let alone = run(isa, threads, &cache, cut..cut + 1, &positions, &[(0..1, phase)]);
                prop_assert_eq!(bits(&alone), bits(&whole[cut * width..(cut + 1) * width]));
                // Next to rows of the other phase.
                let other = if phase == Phase::Prefill { Phase::Decode } else { Phase::Prefill };
                let parts = [(0..cut, other), (cut..rows.end, phase)];
                let mixed = run(isa, threads, &cache, rows.clone(), &positions, &parts);
                prop_assert_eq!(bits(&mixed[cut * width..]), bits(&whole[cut * width..]));
            }
        }
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Longer than a span of either kernel, so that partials are merged, and by few rows, so that they are cut along the cache.
#[test]
fn a_long_cache_is_cut_without_a_trace() {
    let lens = [vec![TILE_TOKENS; 130], vec![5]].concat();
    let tokens: usize = lens.iter().sum();
    for reach in [Reach::CAUSAL, Reach { causal: true, window: Some(5000) }] {
        let cache = Cache::new(shape((3, 1), (64, 64), reach), Kind::Plain, &lens);
        let positions: Vec<u32> = (tokens as u32 - 40..tokens as u32).collect();
        for isa in Isa::available() {
            for phase in [Phase::Prefill, Phase::Decode] {
                let whole = run(isa, 1, &cache, 0..40, &positions, &[(0..40, phase)]);
                for row in [0, 17, 39] {
                    let alone = run(isa, 4, &cache, row..row + 1, &positions, &[(0..1, phase)]);
                    assert_eq!(bits(&alone), bits(&whole[row * 192..(row + 1) * 192]), "{isa} {phase:?}");
                    for head in 0..3 {
                        let want = cache.brute_force(row, head, positions[row]);
                        for (&got, want) in alone[head * 64..].iter().zip(want) {
                            assert!((f64::from(got) - want).abs() < 2e-3, "{isa} {phase:?}: {got} {want}");
                        }
                    }
                }
            }
        }
    }
}
