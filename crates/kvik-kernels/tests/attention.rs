//! Attention partials against a brute-force softmax in f64, for every instruction set.

use kvik_kernels::{
    Isa,
    attention::{
        Partials, Positions, Queries, Reach, RowScales, TILE_TOKENS, Tile, TileShape, fold, pack_query,
    },
};
use proptest::prelude::*;

/// Key, value, position, bias, and the lengths of key and value if these are directions.
type Row = (Vec<f32>, Vec<f32>, u32, f32, [f32; 2]);

/// A cache of one KV head and some queries, as plain numbers.
#[derive(Debug, Clone)]
struct Case {
    shape: TileShape,
    reach: Reach,
    /// Rows of each tile, at most 64.
    tiles: Vec<Vec<Row>>,
    consecutive: bool,
    /// Rows have lengths.
    scaled: bool,
    queries: Vec<(Vec<f32>, u32)>,
}

fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

fn numbers(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-2.0f32..2.0).prop_map(bf16), len)
}

fn case() -> impl Strategy<Value = Case> {
    let shapes = (1usize..70, 1usize..140).prop_map(|(key_dim, value_dim)| TileShape { key_dim, value_dim });
    let reach =
        (any::<bool>(), prop::option::of(1u32..100)).prop_map(|(causal, window)| Reach { causal, window });
    let flags = [any::<bool>(), any::<bool>(), any::<bool>()];
    (shapes, reach, flags).prop_flat_map(|(shape, reach, [consecutive, biased, scaled])| {
        let bias = if biased { (-3.0f32..3.0).boxed() } else { Just(0.0).boxed() };
        let length = || if scaled { (0.0f32..3.0).boxed() } else { Just(1.0).boxed() };
        let lengths = [length(), length()];
        let row = (numbers(shape.key_dim), numbers(shape.value_dim), 0u32..150, bias, lengths);
        let tiles = prop::collection::vec(prop::collection::vec(row, 0..=TILE_TOKENS), 1..4);
        let queries = prop::collection::vec((numbers(shape.key_dim), 0u32..200), 1..10);
        (tiles, queries).prop_map(move |(mut tiles, queries)| {
            if consecutive {
                let mut position = 0;
                for tile in &mut tiles {
                    for row in tile.iter_mut() {
                        row.2 = position;
                        position += 1;
                    }
                }
            }
            Case { shape, reach, tiles, consecutive, scaled, queries }
        })
    })
}

/// What a fold over all tiles gives: per query row the output and the log-sum-exp.
fn run(isa: Isa, case: &Case, rows: std::ops::Range<usize>, pieces: bool) -> (Vec<Vec<f32>>, Vec<f32>) {
    let shape = case.shape;
    let n = rows.len();
    let mut packed = vec![0; n * shape.key_pairs()];
    for (row, slot) in rows.clone().zip(packed.chunks_mut(shape.key_pairs())) {
        pack_query(&case.queries[row].0, 0.5, slot);
    }
    let positions: Vec<u32> = rows.map(|row| case.queries[row].1).collect();
    let queries = Queries { packed: &packed, positions: &positions, reach: case.reach };
    let state = || (vec![0.0; n], vec![0.0; n], vec![0.0; n * shape.value_stride()]);
    let (mut max, mut sum, mut acc) = state();
    let mut total = Partials { max: &mut max, sum: &mut sum, acc: &mut acc };
    total.reset();
    for rows in &case.tiles {
        let (mut keys, mut values) = (vec![0; shape.key_len()], vec![0; shape.value_len()]);
        let (mut at, mut bias) = (vec![0; TILE_TOKENS], vec![0.0; TILE_TOKENS]);
        let mut lengths = [vec![5.0; TILE_TOKENS], vec![5.0; TILE_TOKENS]];
        for (slot, row) in rows.iter().enumerate() {
            shape.write(&mut keys, &mut values, slot, &row.0, &row.1);
            (at[slot], bias[slot]) = (row.2, row.3);
            (lengths[0][slot], lengths[1][slot]) = (row.4[0], row.4[1]);
        }
        let tile = Tile {
            keys: &keys,
            values: &values,
            len: rows.len(),
            positions: if case.consecutive {
                Positions::From(rows.first().map_or(0, |row| row.2))
            } else {
                Positions::Each(&at)
            },
            bias: Some(&bias[..]).filter(|bias| bias.iter().any(|&b| b != 0.0)),
            scales: case.scaled.then_some(RowScales { keys: &lengths[0], values: &lengths[1] }),
        };
        if pieces {
            let (mut max, mut sum, mut acc) = state();
            let mut piece = Partials { max: &mut max, sum: &mut sum, acc: &mut acc };
            piece.reset();
            fold(isa, shape, &queries, &tile, [&[]; 2], &mut piece);
            total.merge(&piece);
        } else {
            fold(isa, shape, &queries, &tile, [&[]; 2], &mut total);
        }
    }
    let mut out = vec![vec![0.0; shape.value_dim]; n];
    for (row, out) in out.iter_mut().enumerate() {
        total.finish(row, out);
    }
    let lse = (0..n).map(|row| total.log_sum_exp(row)).collect();
    (out, lse)
}

fn brute_force(case: &Case, row: usize) -> (Vec<f64>, f64) {
    let (query, position) = &case.queries[row];
    let (first, last) = case.reach.range(*position);
    let seen: Vec<_> = case.tiles.iter().flatten().filter(|r| first <= r.2 && r.2 <= last).collect();
    let score = |key: &[f32], bias: f32, length: f32| {
        let product = |(&q, &k): (&f32, &f32)| f64::from(bf16(q * 0.5)) * f64::from(k) * f64::from(length);
        query.iter().zip(key).map(product).sum::<f64>() + f64::from(bias)
    };
    let weights: Vec<f64> = seen.iter().map(|r| score(&r.0, r.3, r.4[0]).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; case.shape.value_dim];
    for (row, weight) in seen.iter().zip(&weights) {
        for (out, &value) in out.iter_mut().zip(&row.1) {
            *out += weight / sum * f64::from(value) * f64::from(row.4[1]);
        }
    }
    (out, sum.ln())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_instruction_set_agrees_with_brute_force(case in case()) {
        let longest = case.tiles.iter().flatten().fold(1.0, |longest, row| row.4[1].max(longest));
        for isa in Isa::available() {
            for pieces in [false, true] {
                let (out, lse) = run(isa, &case, 0..case.queries.len(), pieces);
                for row in 0..case.queries.len() {
                    let (want, want_lse) = brute_force(&case, row);
                    if want_lse == f64::NEG_INFINITY {
                        prop_assert!(out[row].iter().all(|&x| x == 0.0));
                        continue;
                    }
                    // Weights are rounded to bf16: a relative 2^-9 each, on values of at most 2 times their lengths.
                    prop_assert!((f64::from(lse[row]) - want_lse).abs() < 4e-3, "{isa} lse {} {want_lse}", lse[row]);
                    for (&got, want) in out[row].iter().zip(want) {
                        let most = 8e-3 * f64::from(longest);
                        prop_assert!((f64::from(got) - want).abs() < most, "{isa} row {row}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_alone_gives_the_same_bits_as_in_a_batch(case in case()) {
        for isa in Isa::available() {
            let (all, _) = run(isa, &case, 0..case.queries.len(), true);
            for row in 0..case.queries.len() {
                let (alone, _) = run(isa, &case, row..row + 1, true);
                prop_assert_eq!(&alone[0], &all[row]);
            }
        }
    }
}

#[test]
fn written_rows_read_back_as_bf16() {
    let shape = TileShape { key_dim: 5, value_dim: 18 };
    let (mut keys, mut values) = (vec![0; shape.key_len()], vec![0; shape.value_len()]);
    let row = |slot: usize, n: usize| (0..n).map(|i| (slot * 100 + i) as f32 * 0.37).collect::<Vec<f32>>();
    for slot in 0..TILE_TOKENS {
        shape.write(&mut keys, &mut values, slot, &row(slot, 5), &row(slot + 1, 18));
    }
    for slot in 0..TILE_TOKENS {
        let (mut key, mut value) = ([0.0; 5], [0.0; 18]);
        shape.read(&keys, &values, slot, &mut key, &mut value);
        assert_eq!(key.to_vec(), row(slot, 5).into_iter().map(bf16).collect::<Vec<_>>());
        assert_eq!(value.to_vec(), row(slot + 1, 18).into_iter().map(bf16).collect::<Vec<_>>());
    }
}
