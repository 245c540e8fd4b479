//! The softmax between the two products of a block: scores `[4 groups of tokens][32 rows][16 tokens]` in, bf16 weights
//! `[2 halves of the tokens][32 rows][32 tokens]` out, tiles of the left operand of the second product. Of a tile whose rows have
//! lengths beside them there are two lots of weights: those that are summed, and those that multiply values, which the values'
//! lengths are in.
//!
//! Scores are in units of log₂ (the query carries the factor), so a weight is `2^(score - reference)`. The reference of a
//! row stands in for its running maximum: floating point does not care how large weights are, so the reference moves
//! only when a weight would reach [`LIMIT`] otherwise (as FlashAttention 4 rescales), and then to an integer above the new
//! maximum, which makes the factor on earlier sums a power of two, hence exact. That a weight has reached the limit shows in
//! one bit of its bf16 form: tiles that all rows see whole need no pass for the maximum.

use std::arch::x86_64::*;

use super::{BLOCK_ROWS, Line};
use crate::attention::{TILE_TOKENS, Tile, exp2::exp2, tile::GROUP_TOKENS};

/// Vectors of 16 that a tile's tokens fill.
const VECTORS: usize = TILE_TOKENS / GROUP_TOKENS;

/// Weights stay below this: the bit that [`LIMIT_BIT`] names is set from here on.
const LIMIT: f32 = 2.0;

/// Of both weights of a pair: the upper bit of the exponent.
const LIMIT_BIT: i32 = 0x4000_4000;

/// How far above the maximum (rounded up) a reference is set, in powers of two: room for later tokens to be larger.
const HEADROOM: f32 = 8.0;

/// Scores of a block over a tile.
pub(super) type Scores = [Line; VECTORS * BLOCK_ROWS];

/// Weights of a block over a tile.
pub(super) type Weights = [Line; TILE_TOKENS / 32 * BLOCK_ROWS];

/// Factors on what the rows of a block have summed up so far.
pub(super) type Factors = [f32; BLOCK_ROWS];

/// Weights of a tile that every row sees whole; `false` if a row's reference has to move first.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn weigh_whole(scores: &Scores, references: &[f32], weights: &mut Weights) -> bool {
    let mut seen = _mm512_setzero_si512();
    for (row, &reference) in references.iter().enumerate() {
        let reference = _mm512_set1_ps(reference);
        let weight = |v: usize| exp2(_mm512_sub_ps(scores[v * BLOCK_ROWS + row].floats(), reference));
        let (low, high) = (pack(weight(0), weight(1)), pack(weight(2), weight(3)));
        weights[row].set(low);
        weights[BLOCK_ROWS + row].set(high);
        seen = _mm512_ternarylogic_epi32::<{ 0xF0 | 0xCC | 0xAA }>(seen, low, high);
    }
    _mm512_test_epi32_mask(seen, _mm512_set1_epi32(LIMIT_BIT)) == 0
}

/// Weights of any tile, the references moved where they have to; `None` if none has, otherwise the factors on earlier sums.
/// `scaled` becomes the weights times the lengths of values, if the tile has lengths; otherwise it means nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn weigh(
    scores: &Scores,
    visible: &[u64; BLOCK_ROWS],
    tile: &Tile<'_>,
    references: &mut [f32],
    weights: &mut Weights,
    scaled: &mut Weights,
) -> Option<Factors> {
    let mut moved = false;
    let mut factors = [1.0; BLOCK_ROWS];
    let bias = tile.bias.map(|bias| {
        let mut bias = vectors(bias);
        for bias in &mut bias {
            *bias = _mm512_mul_ps(*bias, _mm512_set1_ps(std::f32::consts::LOG2_E));
        }
        bias
    });
    let scales = tile.scales.map(|scales| [vectors(scales.keys), vectors(scales.values)]);
    for (row, reference) in references.iter_mut().enumerate() {
        if visible[row] == 0 {
            weights[row].set(_mm512_setzero_si512());
            weights[BLOCK_ROWS + row].set(_mm512_setzero_si512());
            scaled[row].set(_mm512_setzero_si512());
            scaled[BLOCK_ROWS + row].set(_mm512_setzero_si512());
            continue;
        }
        let mut masks: [__mmask16; VECTORS] = [0; VECTORS];
        let mut score = [_mm512_setzero_ps(); VECTORS];
        for v in 0..VECTORS {
            masks[v] = (visible[row] >> (GROUP_TOKENS * v)) as u16;
            score[v] = scores[v * BLOCK_ROWS + row].floats();
        }
        if let Some([keys, _]) = scales {
            for v in 0..VECTORS {
                score[v] = _mm512_mul_ps(score[v], keys[v]);
            }
        }
        if let Some(bias) = bias {
            for v in 0..VECTORS {
                score[v] = _mm512_add_ps(score[v], bias[v]);
            }
        }
        let mut max = _mm512_set1_ps(f32::MIN);
        for v in 0..VECTORS {
            max = _mm512_mask_max_ps(max, masks[v], max, score[v]);
        }
        let max = _mm512_reduce_max_ps(max);
        if max - *reference >= LIMIT.log2() {
            let next = max.ceil() + HEADROOM;
            factors[row] = power_of_two(*reference - next);
            *reference = next;
            moved = true;
        }
        let reference = _mm512_set1_ps(*reference);
        let mut weight = [_mm512_setzero_ps(); VECTORS];
        for v in 0..VECTORS {
            weight[v] = _mm512_maskz_mov_ps(masks[v], exp2(_mm512_sub_ps(score[v], reference)));
        }
        weights[row].set(pack(weight[0], weight[1]));
        weights[BLOCK_ROWS + row].set(pack(weight[2], weight[3]));
        if let Some([_, values]) = scales {
            let weight = |v: usize| _mm512_mul_ps(weight[v], values[v]);
            scaled[row].set(pack(weight(0), weight(1)));
            scaled[BLOCK_ROWS + row].set(pack(weight(2), weight(3)));
        }
    }
    moved.then_some(factors)
}

/// A number for each token of a tile, as vectors.
#[target_feature(enable = "avx512f")]
#[inline]
fn vectors(numbers: &[f32]) -> [__m512; VECTORS] {
    let numbers = &numbers[..TILE_TOKENS];
    let mut all = [_mm512_setzero_ps(); VECTORS];
    for (v, vector) in all.iter_mut().enumerate() {
        // SAFETY: the slice holds all vectors.
        *vector = unsafe { _mm512_loadu_ps(numbers.as_ptr().add(GROUP_TOKENS * v)) };
    }
    all
}

/// Multiplies a block's sums, tiles `[32 rows][16]`, by the factors of their rows.
///
/// The tile unit takes numbers below the normal ones for zero, so they become zero here too: whether a row passes through
/// the tile unit once more or not makes no difference then.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) fn rescale(sums: &mut [Line], factors: &Factors) {
    let least = _mm512_set1_ps(f32::MIN_POSITIVE);
    for row in (0..BLOCK_ROWS).filter(|&row| factors[row] != 1.0) {
        let factor = _mm512_set1_ps(factors[row]);
        for line in sums[row..].iter_mut().step_by(BLOCK_ROWS) {
            let scaled = _mm512_mul_ps(line.floats(), factor);
            let normal = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(scaled), least);
            line.set(_mm512_castps_si512(_mm512_maskz_mov_ps(normal, scaled)));
        }
    }
}

/// `2^exponent` for an integer `exponent`, 0 for one below those of normal numbers.
fn power_of_two(exponent: f32) -> f32 {
    if exponent < -126.0 { 0.0 } else { f32::from_bits(((exponent as i32 + 127) as u32) << 23) }
}

/// Two vectors as bf16, rounded to nearest, the first in the lower half.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(super) fn pack(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of plain numbers.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Isa,
        attention::{Positions, RowScales, from_bf16},
    };

    /// Weights of a row and what multiplies its values, as numbers.
    fn numbers(weights: &Weights, row: usize) -> Vec<f32> {
        let words = [row, BLOCK_ROWS + row].into_iter().flat_map(|line| weights[line].0);
        words.flat_map(|pair| [from_bf16(pair as u16), from_bf16((pair >> 16) as u16)]).collect()
    }

    #[test]
    fn lengths_multiply_scores_and_the_weights_of_values_but_not_those_that_are_summed() {
        if Isa::detect() < Isa::Avx512Bf16 {
            return;
        }
        const ROWS: usize = 3;
        let score = |row: usize, token: usize| ((row * 31 + token * 17) % 23) as f32 / 4.0 - 3.0;
        let mut scores = [Line::ZERO; _];
        for row in 0..ROWS {
            for token in 0..TILE_TOKENS {
                let line: &mut Line = &mut scores[token / GROUP_TOKENS * BLOCK_ROWS + row];
                line.0[token % GROUP_TOKENS] = score(row, token).to_bits();
            }
        }
        let lengths =
            |step: usize| (0..TILE_TOKENS).map(|t| (t * step % 13) as f32 / 5.0).collect::<Vec<f32>>();
        let (keys, values, bias) = (lengths(5), lengths(7), lengths(3));
        let scales = RowScales { keys: &keys, values: &values };
        let mut tile = Tile {
            keys: &[],
            values: &[],
            len: TILE_TOKENS,
            positions: Positions::From(0),
            bias: Some(&bias),
            scales: Some(scales),
        };
        let mut visible = [0; BLOCK_ROWS];
        (visible[0], visible[1]) = (u64::MAX, 0x0f0f_f0f0_1234_5678);
        let stale = Line([0x4000_4000; 16]);
        for with_scales in [true, false] {
            tile.scales = with_scales.then_some(scales);
            let (mut weights, mut scaled): (Weights, Weights) = ([stale; _], [stale; _]);
            let mut references = [-1e30, 1.0, 5.0];
            // SAFETY: the processor has AVX-512 with BF16.
            let factors =
                unsafe { weigh(&scores, &visible, &tile, &mut references, &mut weights, &mut scaled) };
            assert_eq!(factors.is_some(), references[..2] != [-1e30, 1.0]);
            assert_eq!(references[2], 5.0, "a row that sees nothing keeps its reference");
            for row in 0..ROWS {
                let (summed, mixed) = (numbers(&weights, row), numbers(&scaled, row));
                for token in 0..TILE_TOKENS {
                    let seen = visible[row] >> token & 1 == 1;
                    let key = if with_scales { keys[token] } else { 1.0 };
                    let log2 = score(row, token) * key + bias[token] * std::f32::consts::LOG2_E;
                    let want = if seen { (log2 - references[row]).exp2() } else { 0.0 };
                    // Rounding to bf16, and what `exp2` is off.
                    let near = |got: f32, want: f32| (got - want).abs() <= want / 250.0 + 1e-37;
                    assert!(near(summed[token], want), "row {row}: {} for {want}", summed[token]);
                    if with_scales {
                        let want = want * values[token];
                        assert!(near(mixed[token], want), "row {row}: {} for {want}", mixed[token]);
                    }
                }
            }
        }
    }
}
