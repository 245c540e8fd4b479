//! AVX-512 with BF16: `vdpbf16ps` for both products.
//!
//! Up to four query rows go together, so that each key and value load feeds four accumulators; 4 rows × 4 vectors
//! are 16 independent chains, enough to hide the latency of the dot product.
//!
//! Tiles lie apart in memory, and each begins with a cold page that the processor's own prefetcher does not foresee. So
//! the first row group fetches ahead: a tile's values while it goes over the keys, the next tile's keys while it goes
//! over the values; of an encoded tile, which is decoded whole before it is folded, what is encoded of the next one.
//!
//! Vectors are filled by loops: a closure that `std::array::from_fn` calls is compiled with these features, `from_fn` without, so
//! whether the one is inlined into the other hangs on the order in which the compiler comes by.

use std::arch::x86_64::*;

use super::{Partials, Queries, TILE_TOKENS, Tile, TileShape, encoding::Codes, exp2::exp2};

/// Vectors of 16 that a tile's tokens fill.
const VECTORS: usize = TILE_TOKENS / 16;

/// Keys and values that are in codes: the tile does not have them.
type Coded<'a> = [Option<Codes<'a>>; 2];

/// # Safety
/// The processor must have the features below, and the slices and codes the shapes that [`super::fold`] and
/// [`super::fold_coded`] check.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn fold(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    coded: Coded<'_>,
    ahead: [&[u8]; 2],
    partials: &mut Partials<'_>,
) {
    let rows = queries.positions.len();
    let mut row = 0;
    while row < rows {
        // SAFETY: the same contract as this function's; `row + R <= rows` in every arm.
        unsafe {
            match rows - row {
                1 => fold_rows::<1>(shape, queries, tile, &coded, ahead, partials, row),
                2 => fold_rows::<2>(shape, queries, tile, &coded, ahead, partials, row),
                3 => fold_rows::<3>(shape, queries, tile, &coded, ahead, partials, row),
                _ => fold_rows::<4>(shape, queries, tile, &coded, ahead, partials, row),
            }
        }
        row += 4;
    }
}

/// Folds rows `first..first + R`.
///
/// # Safety
/// As [`fold`]; and `first + R` is at most the number of query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn fold_rows<const R: usize>(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    coded: &Coded<'_>,
    ahead: [&[u8]; 2],
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

    let ahead = if first == 0 { ahead } else { [&[][..]; 2] };
    // SAFETY: the caller's promise.
    let mut scores = unsafe {
        match &coded[0] {
            None => score_rows::<R>(shape, queries, tile, first, ahead[0]),
            Some(codes) => score_codes::<R>(codes, queries, tile, first, ahead[0]),
        }
    };

    // Softmax of the tile, step by step for all rows, whose chains of operations so overlap.
    let mut masks: [[__mmask16; VECTORS]; R] = [[0; VECTORS]; R];
    let mut max = [0.0f32; R];
    for r in 0..R {
        let before = partials.max[first + r];
        let mut largest = _mm512_set1_ps(before);
        for v in 0..VECTORS {
            masks[r][v] = (visible[r] >> (16 * v)) as u16;
            if let Some(bias) = tile.bias {
                // SAFETY: a bias slice has TILE_TOKENS entries.
                let bias = unsafe { _mm512_loadu_ps(bias.as_ptr().add(16 * v)) };
                scores[r][v] = _mm512_add_ps(scores[r][v], bias);
            }
            largest = _mm512_mask_max_ps(largest, masks[r][v], largest, scores[r][v]);
        }
        max[r] = _mm512_reduce_max_ps(largest);
    }
    // What rescales what came before: one for a row that sees nothing.
    let mut rescale = [0.0f32; 16];
    for r in 0..R {
        rescale[r] = partials.max[first + r] - max[r];
        partials.max[first + r] = max[r];
    }
    // SAFETY: the array has the numbers of a vector.
    unsafe { _mm512_storeu_ps(rescale.as_mut_ptr(), exp(_mm512_loadu_ps(rescale.as_ptr()))) };

    // Weights as bf16 pairs of tokens.
    let mut weights = [[0i32; TILE_TOKENS / 2]; R];
    let (log2_e, ones) = (_mm512_set1_ps(std::f32::consts::LOG2_E), _mm512_set1_epi32(0x3f80_3f80));
    for r in 0..R {
        let reference = _mm512_set1_ps(max[r] * std::f32::consts::LOG2_E);
        let mut sum = _mm512_setzero_ps();
        for v in (0..VECTORS).step_by(2) {
            let weight = |v: usize| {
                _mm512_maskz_mov_ps(masks[r][v], exp2(_mm512_fmsub_ps(scores[r][v], log2_e, reference)))
            };
            let (low, high) = (weight(v), weight(v + 1));
            // The rounded weights are summed, so that a row's weights add up to one exactly.
            let rounded = pack(low, high);
            sum = _mm512_dpbf16_ps(sum, bf16(rounded), bf16(ones));
            // The weight of a value is rounded once, its length included.
            let mixed = tile.scales.map_or(rounded, |scales| {
                // SAFETY: scales have TILE_TOKENS entries.
                let scale = |v: usize| unsafe { _mm512_loadu_ps(scales.values.as_ptr().add(16 * v)) };
                pack(_mm512_mul_ps(low, scale(v)), _mm512_mul_ps(high, scale(v + 1)))
            });
            // SAFETY: `weights[r]` has 32 entries and `v` is 0 or 2: 16 are written from 0 or 16 on.
            unsafe { _mm512_storeu_si512(weights[r].as_mut_ptr().add(8 * v).cast(), mixed) };
        }
        partials.sum[first + r] = partials.sum[first + r] * rescale[r] + _mm512_reduce_add_ps(sum);
    }

    // Values: one 64-byte load holds 16 dims of a pair of tokens; the pair's weights are broadcast.
    let stride = shape.value_stride();
    if let Some(codes) = &coded[1] {
        // SAFETY: the accumulators have a row for each query row, the codes as many vectors as such a row.
        unsafe {
            mix_codes(codes, &weights, &rescale, partials.acc.as_mut_ptr().add(first * stride), ahead[1])
        }
        return;
    }
    let values = tile.values.as_ptr().cast::<i32>();
    let acc = partials.acc.as_mut_ptr();
    let mut ahead = Ahead::new(ahead[1], tile.len.div_ceil(2) * (stride / 64 + stride % 64 / 16));
    let mut dim = 0;
    while dim < stride {
        // SAFETY: `dim + 16 * W <= stride` in each arm; `acc` has `stride` floats per row and `values` has `stride`
        // i32 for each of the tile's token pairs.
        unsafe {
            let (values, acc) = (values.add(dim), acc.add(first * stride + dim));
            if stride - dim >= 64 {
                mix::<R, 4>(&weights, &rescale, tile.len, values, acc, stride, &mut ahead);
                dim += 64;
            } else {
                mix::<R, 1>(&weights, &rescale, tile.len, values, acc, stride, &mut ahead);
                dim += 16;
            }
        }
    }
}

/// Scores of rows `first..first + R`, the lengths of keys applied, without bias; `ahead` is fetched meanwhile.
///
/// # Safety
/// As [`fold_rows`].
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline(never)]
unsafe fn score_rows<const R: usize>(
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    first: usize,
    ahead: &[u8],
) -> [[__m512; VECTORS]; R] {
    let pairs = shape.key_pairs();
    // One 64-byte load holds a pair of dims of 16 tokens; the query's pair is broadcast to all lanes.
    let mut scores = [[_mm512_setzero_ps(); VECTORS]; R];
    let keys = tile.keys.as_ptr().cast::<i32>();
    let query = queries.packed.as_ptr().cast::<i32>();
    let mut ahead = Ahead::new(ahead, pairs);
    for pair in 0..pairs {
        ahead.fetch();
        // SAFETY: `keys` has VECTORS groups of `pairs` × 16 i32, and `query` has `pairs` i32 per row.
        unsafe {
            let mut key = [_mm512_setzero_si512(); VECTORS];
            for v in 0..VECTORS {
                key[v] = _mm512_loadu_si512(keys.add((v * pairs + pair) * 16).cast());
            }
            for r in 0..R {
                let q = bf16(_mm512_set1_epi32(*query.add((first + r) * pairs + pair)));
                for v in 0..VECTORS {
                    scores[r][v] = _mm512_dpbf16_ps(scores[r][v], bf16(key[v]), q);
                }
            }
        }
    }
    apply_lengths(tile, &mut scores);
    scores
}

/// The same of keys in codes.
///
/// # Safety
/// As [`fold_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn score_codes<const R: usize>(
    keys: &Codes<'_>,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    first: usize,
    ahead: &[u8],
) -> [[__m512; VECTORS]; R] {
    let pairs = queries.packed.len() / queries.positions.len();
    let mut rows = [queries.packed.as_ptr().cast(); R];
    for r in 0..R {
        rows[r] = queries.packed[(first + r) * pairs..].as_ptr().cast();
    }
    let mut ahead = Ahead::new(ahead, keys.between());
    // SAFETY: a query has a pair for each pair of dims.
    let mut scores = unsafe { keys.products(rows, 0, &mut || ahead.fetch()) };
    apply_lengths(tile, &mut scores);
    scores
}

/// Multiplies scores with the lengths of keys that are stored as directions.
#[target_feature(enable = "avx512f")]
#[inline]
fn apply_lengths<const R: usize>(tile: &Tile<'_>, scores: &mut [[__m512; VECTORS]; R]) {
    let Some(scales) = tile.scales else { return };
    for v in 0..VECTORS {
        // SAFETY: scales have TILE_TOKENS entries.
        let scale = unsafe { _mm512_loadu_ps(scales.keys.as_ptr().add(16 * v)) };
        for scores in &mut *scores {
            scores[v] = _mm512_mul_ps(scores[v], scale);
        }
    }
}

/// See [`super::scores`].
///
/// # Safety
/// As [`fold`]; `out` has [`TILE_TOKENS`] numbers for each row of `queries.packed`.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn scores(shape: TileShape, queries: &Queries<'_>, tile: &Tile<'_>, out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(TILE_TOKENS).enumerate() {
        // SAFETY: the caller's promise; `out` has one vector for each of the row's.
        unsafe {
            let [scores] = score_rows::<1>(shape, queries, tile, row, &[]);
            for (v, &scores) in scores.iter().enumerate() {
                _mm512_storeu_ps(out.as_mut_ptr().add(16 * v), scores);
            }
        }
    }
}

/// See [`super::column_sums`].
///
/// # Safety
/// As [`fold`]; `log_sum_exp` has an entry for each query row, `columns` has [`TILE_TOKENS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn add_columns(
    shape: TileShape,
    queries: &Queries<'_>,
    log_sum_exp: &[f32],
    tile: &Tile<'_>,
    columns: &mut [f32],
) {
    let rows = queries.positions.len();
    let mut row = 0;
    while row < rows {
        // SAFETY: the same contract as this function's; `row + R <= rows` in every arm.
        unsafe {
            match rows - row {
                1 => add_columns_of::<1>(shape, queries, log_sum_exp, tile, columns, row),
                2 => add_columns_of::<2>(shape, queries, log_sum_exp, tile, columns, row),
                3 => add_columns_of::<3>(shape, queries, log_sum_exp, tile, columns, row),
                _ => add_columns_of::<4>(shape, queries, log_sum_exp, tile, columns, row),
            }
        }
        row += 4;
    }
}

/// Adds rows `first..first + R`.
///
/// # Safety
/// As [`add_columns`]; and `first + R` is at most the number of query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn add_columns_of<const R: usize>(
    shape: TileShape,
    queries: &Queries<'_>,
    log_sum_exp: &[f32],
    tile: &Tile<'_>,
    columns: &mut [f32],
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
    let scores = unsafe { score_rows::<R>(shape, queries, tile, first, &[]) };
    for v in 0..VECTORS {
        // SAFETY: columns and bias have VECTORS × 16 entries.
        unsafe {
            let column = columns.as_mut_ptr().add(16 * v);
            let mut sum = _mm512_loadu_ps(column);
            for r in 0..R {
                let mut score = scores[r][v];
                if let Some(bias) = tile.bias {
                    score = _mm512_add_ps(score, _mm512_loadu_ps(bias.as_ptr().add(16 * v)));
                }
                let shifted = _mm512_sub_ps(score, _mm512_set1_ps(log_sum_exp[first + r]));
                sum = _mm512_mask_add_ps(sum, (visible[r] >> (16 * v)) as u16, sum, exp(shifted));
            }
            _mm512_storeu_ps(column, sum);
        }
    }
}

/// Data that is brought into the first-level cache part by part, ahead of its use.
struct Ahead<'a> {
    lines: std::slice::ChunksExact<'a, u8>,
    /// Lines of a part.
    step: usize,
}

impl<'a> Ahead<'a> {
    /// `data` in so many parts, the last of which may be short or missing.
    #[inline(always)]
    fn new(data: &'a [u8], parts: usize) -> Self {
        const LINE: usize = 64;
        let lines = data.chunks_exact(LINE);
        Self { step: lines.len().div_ceil(parts.max(1)), lines }
    }

    /// Fetches the next part.
    #[inline(always)]
    fn fetch(&mut self) {
        for line in self.lines.by_ref().take(self.step) {
            // SAFETY: a prefetch reads nothing; the address is inside the data all the same.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
}

/// `acc = acc · rescale + Σ weight · value` for `W` vectors of dims of `R` rows; `ahead` is fetched meanwhile.
///
/// # Safety
/// `acc` points to `R` rows of `stride` floats and `values` to rows of `stride` i32, each with `16 * W` to read;
/// there are `tokens` (at most [`TILE_TOKENS`]) rounded up to pairs of value rows.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
unsafe fn mix<const R: usize, const W: usize>(
    weights: &[[i32; TILE_TOKENS / 2]; R],
    rescale: &[f32; 16],
    tokens: usize,
    values: *const i32,
    acc: *mut f32,
    stride: usize,
    ahead: &mut Ahead<'_>,
) {
    // SAFETY: all offsets stay inside what the caller vouches for.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); W]; R];
        for r in 0..R {
            for w in 0..W {
                let before = _mm512_loadu_ps(acc.add(r * stride + 16 * w));
                sums[r][w] = _mm512_mul_ps(before, _mm512_set1_ps(rescale[r]));
            }
        }
        let pairs = tokens.div_ceil(2);
        for pair in 0..pairs {
            ahead.fetch();
            let mut value = [_mm512_setzero_si512(); W];
            for w in 0..W {
                value[w] = _mm512_loadu_si512(values.add(pair * stride + 16 * w).cast());
            }
            for r in 0..R {
                let weight = bf16(_mm512_set1_epi32(weights[r][pair]));
                for w in 0..W {
                    sums[r][w] = _mm512_dpbf16_ps(sums[r][w], bf16(value[w]), weight);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                _mm512_storeu_ps(acc.add(r * stride + 16 * w), sums[r][w]);
            }
        }
    }
}

/// `acc = acc · rescale + Σ weight · value` for `R` rows, of values in codes; `ahead` is fetched meanwhile.
///
/// # Safety
/// `acc` points to `R` rows of as many vectors as the codes have.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn mix_codes<const R: usize>(
    values: &Codes<'_>,
    weights: &[[i32; TILE_TOKENS / 2]; R],
    rescale: &[f32; 16],
    acc: *mut f32,
    ahead: &[u8],
) {
    let vectors = values.lanes() / 16;
    let mut ahead = Ahead::new(ahead, vectors / VECTORS * values.between());
    let mut rows = [weights[0].as_ptr(); R];
    for r in 0..R {
        rows[r] = weights[r].as_ptr();
    }
    for first in (0..vectors).step_by(VECTORS) {
        // SAFETY: weights have a pair for each pair of tokens; the vectors are inside the codes' and the rows'.
        unsafe {
            let sums = values.products(rows, first, &mut || ahead.fetch());
            for r in 0..R {
                for v in 0..VECTORS {
                    let acc = acc.add((r * vectors + first + v) * 16);
                    let before = _mm512_loadu_ps(acc);
                    _mm512_storeu_ps(acc, _mm512_fmadd_ps(before, _mm512_set1_ps(rescale[r]), sums[r][v]));
                }
            }
        }
    }
}

/// Two vectors as bf16, rounded to nearest, the first in the lower half.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn pack(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of plain numbers.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

#[inline(always)]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits of plain numbers.
    unsafe { std::mem::transmute(bits) }
}

/// `e^x` for `x <= 0`, relative error below 2e-7: Cody-Waite reduction and a polynomial of degree 6 (Taylor).
#[target_feature(enable = "avx512f")]
#[inline]
fn exp(x: __m512) -> __m512 {
    let x = _mm512_max_ps(x, _mm512_set1_ps(-104.0));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(crate::rows::LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(crate::rows::LN2_LOW), r);
    let mut p = _mm512_set1_ps(1.0 / 720.0);
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, n)
}
