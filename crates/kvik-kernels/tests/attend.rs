//! Attention of a batch: prompt rows and decoded rows, on every instruction set, against a brute-force softmax in f64.

use std::ops::Range;

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{
        Affine, AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Codec, ColumnSums,
        ObservedRows, PairLayout, PlaneKind, Positions, Reach, Rotary, RowScales, StoredPlane, StoredTile,
        TILE_TOKENS, Tile, TileBuffer, TileShape, attend, column_sums,
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
    /// As chosen ones, rows of directions with lengths beside them.
    Scaled,
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
    /// Of keys and of values.
    lengths: Vec<[Vec<f32>; 2]>,
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
            lengths: Vec::new(),
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
                Kind::Chosen | Kind::Scaled => (number(7, tile, slot) * 64.0 + 128.0) as u32,
                _ => (start + slot) as u32,
            }));
            cache.bias.push((0..TILE_TOKENS).map(|slot| number(8, tile, slot)).collect());
            let length = |what: u64, slot: usize| match kind {
                Kind::Scaled => 0.75 + number(what, tile, slot) / 3.0,
                _ => 1.0,
            };
            let lengths = |what: u64| (0..TILE_TOKENS).map(|slot| length(what, slot)).collect();
            cache.lengths.push([lengths(9), lengths(10)]);
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

    /// Positions and biases stand beside the rows.
    fn chosen(&self) -> bool {
        matches!(self.kind, Kind::Chosen | Kind::Scaled)
    }

    /// Tiles, slots, scores and values, lengths applied, of what query `row` sees at `position`.
    fn seen(&self, row: usize, head: usize, position: u32) -> Vec<(usize, usize, f64, Vec<f64>)> {
        let kv_head = head / self.shape.group();
        let (first, last) = self.shape.reach.range(position);
        let query = self.query(row, head);
        let mut seen = Vec::new();
        for tile in 0..self.lens.len() {
            for slot in 0..self.lens[tile] {
                if (first..=last).contains(&self.positions[tile][slot]) {
                    let (key, value) = self.token(kv_head, tile, slot);
                    let [key_length, value_length] = [0, 1].map(|i| f64::from(self.lengths[tile][i][slot]));
                    let key = key.into_iter().map(|k| f64::from(k) * key_length);
                    let dot: f64 = query.iter().zip(key).map(|(&q, k)| f64::from(q) * k).sum();
                    let bias = if self.chosen() { self.bias[tile][slot] } else { 0.0 };
                    let score = dot * f64::from(self.shape.scale) + f64::from(bias);
                    let value = value.into_iter().map(|v| f64::from(v) * value_length).collect();
                    seen.push((tile, slot, score, value));
                }
            }
        }
        seen
    }

    /// Attention of query `row` at `position`.
    fn brute_force(&self, row: usize, head: usize, position: u32) -> Vec<f64> {
        let seen = self.seen(row, head, position);
        let max = seen.iter().map(|(.., score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = seen.iter().map(|(.., score, _)| (score - max).exp()).sum();
        let mut out = vec![0.0; self.shape.tile.value_dim];
        for (.., score, value) in &seen {
            for (out, &value) in out.iter_mut().zip(value) {
                *out += (score - max).exp() / sum * value;
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
        let chosen = self.0.chosen();
        let [key_lengths, value_lengths] = &self.0.lengths[index];
        let scaled = self.0.kind == Kind::Scaled;
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
            scales: scaled.then_some(RowScales { keys: key_lengths, values: value_lengths }),
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
    let kind = prop::sample::select(vec![Kind::Plain, Kind::Chosen, Kind::Scaled, Kind::Rising]);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Column sums take scores as they are: here nothing is rounded but the queries.
    #[test]
    fn column_sums_are_the_probabilities_that_brute_force_gives(
        cache in caches(), positions in prop::collection::vec(0u32..330, 1..12), threads in 1usize..4,
    ) {
        let (shape, rows, tiles) = (cache.shape, positions.len(), cache.lens.len());
        // As the kernels do: rounded with the scale.
        let round = |q: f32| half::bf16::from_f32(q * shape.scale).to_f32() / shape.scale;
        let queries: Vec<f32> =
            (0..rows).flat_map(|row| (0..shape.heads).map(move |head| (row, head)))
            .flat_map(|(row, head)| cache.query(row, head)).collect();
        let mut want = vec![0f64; shape.heads * tiles * TILE_TOKENS];
        let mut log_sum_exp = vec![0f32; rows * shape.heads];
        for (row, &position) in positions.iter().enumerate() {
            for head in 0..shape.heads {
                // How far the rounded query's score is from the exact one's is a sum over the same rows.
                let mut seen = cache.seen(row, head, position);
                let query = cache.query(row, head);
                for (tile, slot, score, _) in &mut seen {
                    let (key, _) = cache.token(head / shape.group(), *tile, *slot);
                    let length = f64::from(cache.lengths[*tile][0][*slot]);
                    let off: f64 = query.iter().zip(&key).map(|(&q, &k)| f64::from(round(q) - q) * f64::from(k)).sum();
                    *score += off * length * f64::from(shape.scale);
                }
                let max = seen.iter().map(|(.., score, _)| *score).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = seen.iter().map(|(.., score, _)| (score - max).exp()).sum();
                let reference = (max + sum.ln()) as f32;
                log_sum_exp[row * shape.heads + head] = reference;
                for (tile, slot, score, _) in seen {
                    want[(head * tiles + tile) * TILE_TOKENS + slot] += (score - f64::from(reference)).exp();
                }
            }
        }
        let whole = [(0..rows, Phase::Decode)];
        let observed = ObservedRows { queries: &queries, positions: &positions, log_sum_exp: &log_sum_exp };
        for isa in Isa::available() {
            let pool = ThreadPool::new(threads);
            let got = column_sums(&pool, isa, &shape, observed, &Batch(&cache, &whole), 0, tiles, ColumnSums::EachHead);
            for (index, (&got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert!((f64::from(got) - want).abs() < 1e-4 * want.max(1.0), "{isa} column {index}: {got} {want}");
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

/// One tile for each KV head, stored in some way.
struct OneTile<'a>(&'a [StoredTile<'a>]);

impl CachedTiles for OneTile<'_> {
    fn sequences(&self) -> usize {
        1
    }
    fn rows(&self, _sequence: usize) -> Range<usize> {
        0..1
    }
    fn phase(&self, _sequence: usize) -> Phase {
        Phase::Decode
    }
    fn tiles(&self, _sequence: usize, _kv_head: usize) -> usize {
        1
    }
    fn tile(&self, _sequence: usize, kv_head: usize, _index: usize) -> Option<StoredTile<'_>> {
        Some(self.0[kv_head])
    }
}

/// Encoded, rotated when it is read, or both: lengths multiply what such rows come to, and plain rows stay where they lie.
#[test]
fn lengths_go_with_every_way_of_storing_rows() {
    let shape = shape((4, 1), (64, 64), Reach::CAUSAL);
    let cache = Cache::new(shape, Kind::Scaled, &[40]);
    let (keys, values) = &cache.tiles[0][0];
    let rotary = Rotary {
        frequencies: (0..32).map(|i| 0.7f32.powi(i)).collect(),
        factor: 1.0,
        layout: PairLayout::Halves,
    };
    let codec = Affine::new(4, 32);
    let blocks = [(PlaneKind::Keys, keys), (PlaneKind::Values, values)].map(|(plane, numbers)| {
        let mut rows = vec![0.0; 32 * 64];
        for (slot, row) in rows.chunks_mut(64).enumerate() {
            shape.tile.read_row(plane, numbers, slot, row);
        }
        let mut block = vec![0; codec.block_bytes(plane, 64)];
        codec.encode(plane, 64, 0, &rows, &mut block);
        block
    });
    let whole = [(0..1, Phase::Decode)];
    let batch = Batch(&cache, &whole);
    let plain = batch.tile(0, 0, 0).unwrap();
    let [encoded_keys, encoded_values] = [0, 1].map(|i| StoredPlane::Encoded {
        codec: &codec,
        block: &blocks[i],
        rows: 32,
        rest: Some(if i == 0 { &keys[..] } else { &values[..] }),
    });
    let encoded = StoredTile { keys: encoded_keys, values: encoded_values, ..plain };
    for stored in [plain, encoded] {
        for rotation in [None, Some(&rotary)] {
            let stored = StoredTile { rotation, ..stored };
            let mut buffer = TileBuffer::default();
            let tile = StoredTile { scales: None, ..stored }.decode(shape.tile, &mut buffer);
            // What the tile decodes to, restored row by row.
            let (key_lengths, value_lengths) = (&cache.lengths[0][0], &cache.lengths[0][1]);
            let rows: Vec<(Vec<f32>, Vec<f32>)> = (0..40)
                .map(|slot| {
                    let (mut key, mut value) = (vec![0.0; 64], vec![0.0; 64]);
                    shape.tile.read(tile.keys, tile.values, slot, &mut key, &mut value);
                    key.iter_mut().for_each(|k| *k *= key_lengths[slot]);
                    value.iter_mut().for_each(|v| *v *= value_lengths[slot]);
                    (key, value)
                })
                .collect();
            let mut buffer = TileBuffer::default();
            let tile = stored.decode(shape.tile, &mut buffer);
            assert_eq!(tile.scales.map(|scales| scales.keys), Some(&key_lengths[..]));
            if let (StoredPlane::Rows(values), StoredPlane::Rows(keys)) = (stored.values, stored.keys) {
                assert!(std::ptr::eq(tile.values, values));
                assert_eq!(std::ptr::eq(tile.keys, keys), rotation.is_none());
            }
            for isa in Isa::available() {
                let queries: Vec<f32> = (0..4).flat_map(|head| cache.query(0, head)).collect();
                let mut out = vec![0.0; 4 * 64];
                let mut scratch = AttentionScratch::new(1, &shape, TILE_TOKENS);
                let attended =
                    AttentionRows { queries: &queries, positions: &[1000], out: &mut out, log_sum_exp: None };
                attend(&ThreadPool::new(1), isa, &shape, attended, &OneTile(&[stored]), &mut scratch);
                for (head, out) in out.chunks(64).enumerate() {
                    let query = cache.query(0, head);
                    let weights: Vec<f64> = rows
                        .iter()
                        .zip(&cache.bias[0])
                        .map(|((key, _), &bias)| {
                            let dot: f64 =
                                query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                            (dot * f64::from(shape.scale) + f64::from(bias)).exp()
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for (dim, &got) in out.iter().enumerate() {
                        let mixed: f64 =
                            rows.iter().zip(&weights).map(|((_, v), w)| w * f64::from(v[dim])).sum();
                        assert!((f64::from(got) - mixed / sum).abs() < 2e-2, "{isa} head {head}: {got}");
                    }
                }
            }
        }
    }
}
