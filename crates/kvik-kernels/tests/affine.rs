//! The affine codec against a plain model of it, for every number of bits, every shape and every instruction set.

use kvik_kernels::{
    Isa,
    attention::{Affine, Codec, PlaneKind, TILE_TOKENS, TileShape},
};
use proptest::prelude::*;

const PLANES: [PlaneKind; 2] = [PlaneKind::Keys, PlaneKind::Values];

fn bf16(x: f64) -> f64 {
    half::bf16::from_f64(x).to_f64()
}

/// How numbers of a plane come about.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    /// Between -2 and 2.
    Tame,
    /// Every dim with an offset of its own, up to thousands.
    Offset,
    /// Of all magnitudes, tiny ones and the largest included.
    Wild,
    /// All the same.
    Constant,
}

fn rows(numbers: Numbers, seed: u64, count: usize, dim: usize) -> Vec<f32> {
    let draw = |row: usize, column: usize| {
        let mut x = seed ^ (row as u64) << 32 ^ column as u64;
        for _ in 0..3 {
            x = (x ^ x >> 29).wrapping_add(0x9e37_79b9).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        (x >> 32) as u32
    };
    let unit = |x: u32| f64::from(x) / f64::from(u32::MAX) * 4.0 - 2.0;
    let number = |row: usize, column: usize| match numbers {
        Numbers::Tame => unit(draw(row, column)),
        Numbers::Offset => unit(draw(row, column)) + unit(draw(usize::MAX, column)) * 2000.0,
        Numbers::Wild => f64::from(f32::from_bits(draw(row, column) & 0xfdff_ffff | 1)),
        Numbers::Constant => unit(draw(0, 0)),
    };
    (0..count * dim).map(|i| half::bf16::from_f64(number(i / dim, i % dim)).to_f32()).collect()
}

/// What a group comes back as, and half its scale.
fn model(group: &[f64], bits: usize) -> (Vec<f64>, f64) {
    let min = group.iter().copied().fold(f64::INFINITY, f64::min);
    let max = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let scale = (max - min) / ((1 << bits) - 1) as f64;
    if scale == 0.0 {
        return (group.to_vec(), 0.0);
    }
    let back = |&x: &f64| min + ((x - min) / scale).round() * scale;
    (group.iter().map(back).collect(), scale / 2.0)
}

/// What all rows come back as, and half the scale of each number's group.
fn modelled(codec: (usize, usize), plane: PlaneKind, dim: usize, rows: &[f32]) -> Vec<(f64, f64)> {
    let (bits, group) = codec;
    let mut out = vec![(0.0, 0.0); rows.len()];
    let mut of = |at: Vec<usize>| {
        let numbers: Vec<f64> = at.iter().map(|&i| f64::from(rows[i])).collect();
        let (back, half) = model(&numbers, bits);
        at.iter().zip(back).for_each(|(&i, back)| out[i] = (back, half));
    };
    match plane {
        PlaneKind::Keys => {
            for tokens in (0..rows.len() / dim).step_by(group) {
                (0..dim).for_each(|d| of((tokens..tokens + group).map(|t| t * dim + d).collect()));
            }
        }
        PlaneKind::Values => {
            for token in 0..rows.len() / dim {
                for d in (0..dim).step_by(group) {
                    of((d..dim.min(d + group)).map(|d| token * dim + d).collect());
                }
            }
        }
    }
    out
}

fn encoded(codec: Affine, plane: PlaneKind, dim: usize, rows: &[f32]) -> Vec<u8> {
    let mut block = vec![0; codec.block_bytes(plane, dim)];
    codec.encode(plane, dim, 0, rows, &mut block);
    block
}

/// The first `count` rows of a block, as bf16 bits.
fn decoded(codec: Affine, plane: PlaneKind, dim: usize, count: usize, block: &[u8]) -> Vec<u16> {
    let shape = TileShape { key_dim: dim, value_dim: dim };
    let mut plane_numbers = vec![0x7fc0; shape.plane(plane).1];
    codec.decode(plane, dim, count, block, &mut plane_numbers);
    let mut row = vec![0.0; dim];
    let mut out = Vec::new();
    for slot in 0..count {
        shape.read_row(plane, &plane_numbers, slot, &mut row);
        out.extend(row.iter().map(|x| half::bf16::from_f32(*x).to_bits()));
    }
    out
}

fn dims() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..140, prop::sample::select(vec![40, 64, 80, 96, 112, 128, 192, 256])]
}

fn kinds() -> impl Strategy<Value = Numbers> {
    prop::sample::select(vec![Numbers::Tame, Numbers::Offset, Numbers::Wild, Numbers::Constant])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_set_of_instructions_gives_what_the_model_gives(
        dim in dims(), seed: u64, kind in kinds(), groups in 1usize..=4, remainder in 0usize..64,
    ) {
        for plane in PLANES {
            for bits in Affine::BITS {
                for group in Affine::GROUPS {
                    let codec = Affine::new(bits, group);
                    let unit = codec.group_rows(plane);
                    let count = (groups * unit + remainder / unit * unit).min(TILE_TOKENS);
                    let rows = rows(kind, seed, count, dim);
                    let block = encoded(codec, plane, dim, &rows);
                    let reference = decoded(codec.on(Isa::Scalar), plane, dim, count, &block);
                    for isa in Isa::available() {
                        let got = decoded(codec.on(isa), plane, dim, count, &block);
                        prop_assert!(got == reference, "{isa} {plane:?} {bits} bits, groups of {group}");
                    }
                    let model = modelled((bits, group), plane, dim, &rows);
                    for ((&got, &x), (back, half)) in reference.iter().zip(&rows).zip(model) {
                        let (got, x) = (half::bf16::from_bits(got).to_f64(), f64::from(x));
                        // bf16 has 8 digits; numbers below the normal ones are zero.
                        let rounding = got.abs() / 256.0 + 2e-38 + half * 1e-4;
                        prop_assert!((got - x).abs() <= half + rounding, "{x} came back as {got}, half is {half}");
                        // Where the code is no matter of rounding, it is the model's.
                        let code = (x - back).abs() / (half + 1e-300);
                        if half > 0.0 && code < 0.99 {
                            prop_assert!((got - back).abs() <= rounding, "{x} came back as {got}, not {back}");
                        }
                        if half == 0.0 && x.abs() > 2e-38 {
                            prop_assert_eq!(got, bf16(x));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_come_one_by_one_leave_the_same_bytes(
        dim in dims(), seed: u64, bits in prop::sample::select(Affine::BITS.to_vec()),
        group in prop::sample::select(Affine::GROUPS.to_vec()),
    ) {
        let codec = Affine::new(bits, group);
        for plane in PLANES {
            let rows = rows(Numbers::Tame, seed, TILE_TOKENS, dim);
            let mut block = vec![0; codec.block_bytes(plane, dim)];
            let unit = codec.group_rows(plane);
            for first in (0..TILE_TOKENS).step_by(unit) {
                codec.encode(plane, dim, first, &rows[first * dim..(first + unit) * dim], &mut block);
            }
            prop_assert!(block == encoded(codec, plane, dim, &rows));
            // What was there before is written over.
            let other = self::rows(Numbers::Offset, seed ^ 1, TILE_TOKENS, dim);
            codec.encode(plane, dim, 0, &other, &mut block);
            prop_assert!(block == encoded(codec, plane, dim, &other));
        }
    }

    /// Numbers that are codes already come back as they were: packing loses nothing.
    #[test]
    fn codes_are_packed_and_unpacked_without_loss(dim in dims(), seed: u64) {
        for plane in PLANES {
            for bits in Affine::BITS {
                let group = 16;
                let most = (1u32 << bits) - 1;
                let mut rows = rows(Numbers::Wild, seed, TILE_TOKENS, dim);
                rows.iter_mut().for_each(|x| *x = (x.to_bits() >> 16 & most) as f32);
                // Every group has the smallest code and the largest.
                for row in 0..TILE_TOKENS {
                    for d in 0..dim {
                        let place = if plane == PlaneKind::Keys { row } else { d } % group;
                        if place < 2 {
                            rows[row * dim + d] = (place as u32 * most) as f32;
                        }
                    }
                }
                if plane == PlaneKind::Values && dim % group == 1 {
                    continue;
                }
                let codec = Affine::new(bits, group);
                let block = encoded(codec, plane, dim, &rows);
                let want: Vec<u16> = rows.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                for isa in Isa::available() {
                    prop_assert!(decoded(codec.on(isa), plane, dim, TILE_TOKENS, &block) == want, "{isa} {bits}");
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_or_infinite_comes_back_finite() {
    let dim = 32;
    let mut rows = rows(Numbers::Tame, 5, TILE_TOKENS, dim);
    rows[3] = f32::NAN;
    rows[40] = f32::INFINITY;
    rows[41] = f32::NEG_INFINITY;
    rows[42] = f32::MAX;
    rows[43] = f32::MIN;
    for plane in PLANES {
        for bits in Affine::BITS {
            let codec = Affine::new(bits, 32);
            let block = encoded(codec, plane, dim, &rows);
            for isa in Isa::available() {
                let got = decoded(codec.on(isa), plane, dim, TILE_TOKENS, &block);
                assert!(got.iter().all(|&x| half::bf16::from_bits(x).is_finite()));
            }
        }
    }
}

#[test]
fn a_block_takes_the_bits_of_its_codes_and_two_numbers_a_group() {
    for (bits, group, dim) in [(2, 32, 64), (4, 32, 128), (8, 64, 256), (1, 16, 64), (2, 16, 80)] {
        for plane in PLANES {
            let groups = TILE_TOKENS * dim / group;
            let want = TILE_TOKENS * dim * bits / 8 + groups * 4;
            assert_eq!(
                Affine::new(bits, group).block_bytes(plane, dim),
                want,
                "{bits} {group} {dim} {plane:?}"
            );
        }
    }
}
