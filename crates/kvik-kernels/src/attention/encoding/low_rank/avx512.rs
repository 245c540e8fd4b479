//! Rebuilding rows with `vdpbf16ps`: four rows and four vectors of dims at a time, 16 independent chains.

use std::arch::x86_64::*;

use super::LANES;

/// `directions` are `[pair][stride][2]` bf16, `coefficients` `[rows][pair][2]` bf16, `out` `[rows, dim]`.
///
/// # Safety
/// The processor must have the features below; the slices must have the shapes above, `stride` a whole number of vectors and
/// not less than `dim`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn rebuild(
    dim: usize,
    stride: usize,
    directions: &[u16],
    coefficients: &[u8],
    out: &mut [f32],
) {
    let rows = out.len() / dim;
    let pairs = directions.len() / (2 * stride);
    let mut row = 0;
    while row < rows {
        let some = (rows - row).min(4);
        for first in (0..dim).step_by(4 * LANES) {
            let vectors = (dim - first).div_ceil(LANES).min(4);
            // SAFETY: rows `row..row + some` have coefficients and space in `out`, and the vectors of dims from `first` on lie
            // within `stride`.
            unsafe {
                let directions = directions.as_ptr().cast::<i32>().add(first);
                let coefficients = coefficients.as_ptr().cast::<i32>().add(row * pairs);
                let out = out.as_mut_ptr().add(row * dim + first);
                let part = Part { pairs, stride, dim, left: dim - first };
                match (some, vectors) {
                    (4, 4) => part.rebuild::<4, 4>(directions, coefficients, out),
                    (4, vectors) => {
                        for v in 0..vectors {
                            part.behind(v).rebuild::<4, 1>(
                                directions.add(v * LANES),
                                coefficients,
                                out.add(v * LANES),
                            );
                        }
                    }
                    (some, vectors) => {
                        for v in 0..vectors {
                            for r in 0..some {
                                part.behind(v).rebuild::<1, 1>(
                                    directions.add(v * LANES),
                                    coefficients.add(r * pairs),
                                    out.add(r * dim + v * LANES),
                                );
                            }
                        }
                    }
                }
            }
        }
        row += some;
    }
}

/// Shapes of a part of the product.
#[derive(Clone, Copy)]
struct Part {
    pairs: usize,
    stride: usize,
    dim: usize,
    /// Dims of a row from the part's first on.
    left: usize,
}

impl Part {
    /// The part `vectors` further along the dims.
    fn behind(self, vectors: usize) -> Self {
        Self { left: self.left - vectors * LANES, ..self }
    }

    /// `R` rows, `V` vectors of dims.
    ///
    /// # Safety
    /// As [`rebuild`], the pointers advanced to the part's first row and dim.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn rebuild<const R: usize, const V: usize>(
        self,
        directions: *const i32,
        coefficients: *const i32,
        out: *mut f32,
    ) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for pair in 0..self.pairs {
            // SAFETY: `pair` is one of the pairs of the directions and of each row's coefficients.
            unsafe {
                let mut d = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    d[v] = _mm512_loadu_si512(directions.add(pair * self.stride + v * LANES).cast());
                }
                for r in 0..R {
                    let c = _mm512_set1_epi32(coefficients.add(r * self.pairs + pair).read_unaligned());
                    for v in 0..V {
                        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], bf16(c), bf16(d[v]));
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                let lanes = (self.left - v * LANES).min(LANES);
                // SAFETY: only lanes inside the row are written.
                unsafe {
                    let mask = (u32::MAX >> (32 - lanes)) as u16;
                    _mm512_mask_storeu_ps(out.add(r * self.dim + v * LANES), mask, sum);
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of plain numbers.
    unsafe { std::mem::transmute(bits) }
}
