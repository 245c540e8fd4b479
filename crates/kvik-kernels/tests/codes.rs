//! Attention of a decoded token over keys and values in codes: products with the codes where they lie (AVX-512) and tiles that are
//! decoded first (everything else) against a softmax in f64 over the numbers that the codes stand for.

use std::ops::Range;

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{
        Affine, AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Codec, PlaneKind, Positions,
        Reach, RowScales, StoredPlane, StoredTile, TILE_TOKENS, TileShape, attend,
    },
};
use proptest::prelude::*;

/// Numbers that depend on a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

/// Tiles of one KV head in codes, all of them full.
struct Tiles {
    codec: Affine,
    shape: TileShape,
    /// Keys and values of each tile.
    blocks: Vec<[Vec<u8>; 2]>,
    scales: Option<[Vec<f32>; 2]>,
    bias: Vec<f32>,
}

impl CachedTiles for Tiles {
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
        self.blocks.len()
    }
    fn tile(&self, _sequence: usize, _kv_head: usize, index: usize) -> Option<StoredTile<'_>> {
        let plane = |block| StoredPlane::Encoded { codec: &self.codec, block, rows: TILE_TOKENS, rest: None };
        let [keys, values] = &self.blocks[index];
        Some(StoredTile {
            keys: plane(keys),
            values: plane(values),
            len: TILE_TOKENS,
            positions: Positions::From((index * TILE_TOKENS) as u32),
            bias: Some(&self.bias),
            scales: self.scales.as_ref().map(|[keys, values]| RowScales { keys, values }),
            rotation: None,
            shifts: None,
        })
    }
}

/// A softmax in f64 over what the codes stand for.
fn expected(tiles: &Tiles, query: &[f32], scale: f32, position: usize) -> Vec<f64> {
    let [key_dim, value_dim] = [tiles.shape.key_dim, tiles.shape.value_dim];
    let mut rows = Vec::new();
    for (index, [keys, values]) in tiles.blocks.iter().enumerate() {
        let of = |plane, dim, block: &[u8]| {
            let mut rows = vec![0.0; TILE_TOKENS * dim];
            tiles.codec.decode_rows(plane, dim, 0..TILE_TOKENS, block, &mut rows);
            rows
        };
        let keys = of(PlaneKind::Keys, key_dim, keys);
        let values = of(PlaneKind::Values, value_dim, values);
        for token in (0..TILE_TOKENS).filter(|token| index * TILE_TOKENS + token <= position) {
            let [key_length, value_length] =
                tiles.scales.as_ref().map_or([1.0; 2], |[k, v]| [k[token], v[token]]).map(f64::from);
            let key = &keys[token * key_dim..][..key_dim];
            let dot: f64 = query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
            let weight = (dot * key_length * f64::from(scale) + f64::from(tiles.bias[token])).exp();
            let value = values[token * value_dim..][..value_dim].iter();
            rows.push((weight, value.map(|&v| f64::from(v) * value_length).collect::<Vec<f64>>()));
        }
    }
    let sum: f64 = rows.iter().map(|(weight, _)| weight).sum();
    (0..value_dim).map(|dim| rows.iter().map(|(w, value)| w * value[dim]).sum::<f64>() / sum).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn attention_over_codes_is_attention_over_their_numbers(
        bits in prop::sample::select(&Affine::BITS[..]),
        group in prop::sample::select(&Affine::GROUPS[..]),
        key_dim in prop::sample::select(vec![16, 40, 64, 80, 128, 256, 320]),
        value_dim in prop::sample::select(vec![16, 40, 64, 96, 128, 256]),
        heads in 1usize..7,
        count in 1usize..4,
        directions: bool,
        seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let shape = TileShape { key_dim, value_dim };
        let codec = Affine::new(bits, group);
        let mut tile = || {
            [(PlaneKind::Keys, key_dim), (PlaneKind::Values, value_dim)].map(|(plane, dim)| {
                // A few channels lie far off, as those of keys do.
                let offsets: Vec<f32> =
                    (0..dim).map(|d| if d % 13 == 5 { numbers.between(-6.0, 6.0) } else { 0.0 }).collect();
                let rows: Vec<f32> = (0..TILE_TOKENS * dim)
                    .map(|i| offsets[i % dim] + numbers.between(-1.0, 1.0))
                    .collect();
                let mut block = vec![0; codec.block_bytes(plane, dim)];
                codec.encode(plane, dim, 0, &rows, &mut block);
                block
            })
        };
        let blocks = (0..count).map(|_| tile()).collect();
        let mut column =
            |low, high| -> Vec<f32> { (0..TILE_TOKENS).map(|_| numbers.between(low, high)).collect() };
        let scales = directions.then(|| [column(0.2, 2.0), column(0.2, 2.0)]);
        let tiles = Tiles { codec, shape, blocks, scales, bias: column(-1.0, 1.0) };
        // Numbers that bf16 has, with the scale as well: what is compared is the rest of the way.
        let queries: Vec<f32> =
            (0..heads * key_dim).map(|_| numbers.between(-16.0, 17.0).floor() / 16.0).collect();
        // Of a value: 7 before its length.
        let largest = if directions { 14.0 } else { 7.0 };
        let position = numbers.next() as usize % (count * TILE_TOKENS);
        let scale = 0.125;
        let attention = AttentionShape { heads, kv_heads: 1, tile: shape, scale, reach: Reach::CAUSAL };
        for isa in Isa::available() {
            let codec = codec.on(isa);
            let tiles = Tiles { codec, blocks: tiles.blocks.clone(), scales: tiles.scales.clone(), bias: tiles.bias.clone(), shape };
            let mut out = vec![f32::NAN; heads * value_dim];
            let mut scratch = AttentionScratch::new(1, &attention, count * TILE_TOKENS);
            let rows = AttentionRows {
                queries: &queries,
                positions: &[position as u32],
                out: &mut out,
                log_sum_exp: None,
            };
            attend(&ThreadPool::new(1), isa, &attention, rows, &tiles, &mut scratch);
            for (head, out) in out.chunks_exact(value_dim).enumerate() {
                let expected = expected(&tiles, &queries[head * key_dim..][..key_dim], scale, position);
                // Queries take scales in bf16, of all dims: so much of the largest values is lost in the weights.
                let bound = 0.02 + 0.006 * largest;
                for (dim, (&got, want)) in out.iter().zip(expected).enumerate() {
                    prop_assert!((f64::from(got) - want).abs() < bound, "{isa} head {head} dim {dim}: {got} for {want}");
                }
            }
        }
    }
}
