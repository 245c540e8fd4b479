//! AVX2 with FMA: bf16 is widened by shifts, products are f32.
//!
//! Same shape as the AVX-512 kernel with vectors of eight: up to four query rows share each load.

use std::arch::x86_64::*;

use super::{
    Partials, Queries, TILE_TOKENS, Tile, TileShape,
    tile::{GROUP_TOKENS, from_bf16, to_bf16},
};
use crate::rows::exp_lane;

/// # Safety
/// The processor must have the features below, and the slices the shapes that [`super::fold`] checks.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn fold(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    partials: &mut Partials<'_>,
) {
    let rows = queries.positions.len();
    let mut row = 0;
    while row < rows {
        // SAFETY: the same contract as this function's; `row + R <= rows` in every arm.
        unsafe {
            match rows - row {
                1 => fold_rows::<1>(shape, queries, tile, partials, row),
                2 => fold_rows::<2>(shape, queries, tile, partials, row),
                3 => fold_rows::<3>(shape, queries, tile, partials, row),
                _ => fold_rows::<4>(shape, queries, tile, partials, row),
            }
        }
        row += 4;
    }
}

/// Folds rows `first..first + R`.
///
/// # Safety
/// As [`fold`]; and `first + R` is at most the number of query rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn fold_rows<const R: usize>(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    partials: &mut Partials<'_>,
    first: usize,
) {
    let mut visible = [0u64; R];
    for r in 0..R {
        visible[r] = tile.visible(queries.reach, queries.positions[first + r]);
    }
    if visible.iter().all(|&bits| bits == 0) {
        return;
    }
    // SAFETY: the caller's promise.
    let mut scores = unsafe { score_rows::<R>(shape, queries, tile, first) };

    let mut rescale = [1.0f32; R];
    for r in 0..R {
        let sees = |token: usize| visible[r] >> token & 1 == 1;
        let before = partials.max[first + r];
        let mut max = before;
        for token in 0..TILE_TOKENS {
            scores[r][token] += tile.bias.map_or(0.0, |bias| bias[token]);
            max = if sees(token) { max.max(scores[r][token]) } else { max };
        }
        rescale[r] = exp_lane(before - max);
        let mut sum = 0.0;
        for token in 0..TILE_TOKENS {
            // The rounded weights are summed, so that a row's weights add up to one exactly.
            let weight = if sees(token) { exp_lane(scores[r][token] - max) } else { 0.0 };
            scores[r][token] = from_bf16(to_bf16(weight));
            sum += scores[r][token];
        }
        if let Some(scales) = tile.scales {
            for (weight, scale) in scores[r].iter_mut().zip(scales.values) {
                *weight *= scale;
            }
        }
        partials.max[first + r] = max;
        partials.sum[first + r] = partials.sum[first + r] * rescale[r] + sum;
    }

    let weights = scores;
    let stride = shape.value_stride();
    for dim in (0..stride).step_by(8) {
        // SAFETY: `dim + 8 <= stride`; the accumulators have `stride` floats per row, and the values `stride` pairs
        // of bf16 for each pair of tokens.
        unsafe {
            let acc = partials.acc.as_mut_ptr().add(first * stride + dim);
            let mut sums = [_mm256_setzero_ps(); R];
            for r in 0..R {
                sums[r] = _mm256_mul_ps(_mm256_loadu_ps(acc.add(r * stride)), _mm256_set1_ps(rescale[r]));
            }
            for pair in 0..tile.len.div_ceil(2) {
                let values = tile.values.as_ptr().add((pair * stride + dim) * 2);
                let (even, odd) = widen(_mm256_loadu_si256(values.cast()));
                for r in 0..R {
                    sums[r] = _mm256_fmadd_ps(even, _mm256_set1_ps(weights[r][2 * pair]), sums[r]);
                    sums[r] = _mm256_fmadd_ps(odd, _mm256_set1_ps(weights[r][2 * pair + 1]), sums[r]);
                }
            }
            for r in 0..R {
                _mm256_storeu_ps(acc.add(r * stride), sums[r]);
            }
        }
    }
}

/// Scores of rows `first..first + R`, the lengths of keys applied, without bias.
///
/// # Safety
/// As [`fold_rows`].
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn score_rows<const R: usize>(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    first: usize,
) -> [[f32; TILE_TOKENS]; R] {
    let pairs = shape.key_pairs();

    let mut scores = [[0f32; TILE_TOKENS]; R];
    let mut query = [&[][..]; R];
    for r in 0..R {
        query[r] = &queries.packed[(first + r) * pairs..][..pairs];
    }
    for group in 0..tile.len.div_ceil(GROUP_TOKENS) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for pair in 0..pairs {
            for half in 0..2 {
                // SAFETY: the keys have `pairs` × 16 i32 for each group of the tile.
                let keys = unsafe {
                    let start = ((group * pairs + pair) * GROUP_TOKENS + 8 * half) * 2;
                    _mm256_loadu_si256(tile.keys.as_ptr().add(start).cast())
                };
                let (even, odd) = widen(keys);
                for r in 0..R {
                    let q = query[r][pair];
                    sums[r][half] = _mm256_fmadd_ps(even, _mm256_set1_ps(from_bf16(q as u16)), sums[r][half]);
                    sums[r][half] =
                        _mm256_fmadd_ps(odd, _mm256_set1_ps(from_bf16((q >> 16) as u16)), sums[r][half]);
                }
            }
        }
        for r in 0..R {
            for half in 0..2 {
                // SAFETY: `group * 16 + 8 * half + 8` is at most TILE_TOKENS.
                unsafe {
                    let start = group * GROUP_TOKENS + 8 * half;
                    _mm256_storeu_ps(scores[r].as_mut_ptr().add(start), sums[r][half]);
                }
            }
        }
    }
    if let Some(scales) = tile.scales {
        for scores in &mut scores {
            scores.iter_mut().zip(scales.keys).for_each(|(score, scale)| *score *= scale);
        }
    }
    scores
}

/// See [`super::scores`].
///
/// # Safety
/// As [`fold`]; `out` has [`TILE_TOKENS`] numbers for each row of `queries.packed`.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn scores(shape: TileShape, queries: &Queries<'_>, tile: &Tile<'_>, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(TILE_TOKENS).enumerate() {
        // SAFETY: the caller's promise.
        let [scores] = unsafe { score_rows::<1>(shape, queries, tile, row) };
        out.copy_from_slice(&scores);
    }
}

/// See [`super::column_sums`].
///
/// # Safety
/// As [`fold`]; `log_sum_exp` has an entry for each query row, `columns` has [`TILE_TOKENS`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_columns(
    shape: TileShape,
    queries: &Queries<'_>,
    log_sum_exp: &[f32],
    tile: &Tile<'_>,
    columns: &mut [f32],
) {
    for (row, &position) in queries.positions.iter().enumerate() {
        let visible = tile.visible(queries.reach, position);
        if visible == 0 {
            continue;
        }
        // SAFETY: the same contract as this function's.
        let [scores] = unsafe { score_rows::<1>(shape, queries, tile, row) };
        for token in 0..TILE_TOKENS {
            let score = scores[token] + tile.bias.map_or(0.0, |bias| bias[token]);
            let weight = exp_lane(score - log_sum_exp[row]);
            columns[token] += if visible >> token & 1 == 1 { weight } else { 0.0 };
        }
    }
}

/// The lower and the upper bf16 of each 32 bits, as f32.
#[target_feature(enable = "avx2")]
#[inline]
fn widen(pairs: __m256i) -> (__m256, __m256) {
    let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000u32 as i32));
    (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(odd))
}
