//! Products of two sets of rows in f32: for the linear algebra of methods that decompose what is cached, at the end of a prompt.

use crate::Isa;

/// Numbers that are multiplied side by side.
const LANES: usize = 16;
/// Rows of either side that share what they load.
const ROWS: usize = 4;

/// `out[i, j]` becomes the product of row `i` of `a` (`[n, dim]`) and row `j` of `b` (`[m, dim]`), `[n, m]`.
///
/// # Panics
/// If the slices do not have these shapes.
pub fn products(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    assert!(dim > 0 && a.len().is_multiple_of(dim) && b.len().is_multiple_of(dim));
    assert_eq!(out.len(), a.len() / dim * (b.len() / dim));
    match Isa::active() {
        // SAFETY: an `Isa` above Scalar only exists on a processor that has it.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { products_avx512(a, b, dim, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { products_avx2(a, b, dim, out) },
        _ => products_by::<false>(a, b, dim, out),
    }
}

/// # Safety
/// The processor must have the features below.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn products_avx512(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    products_by::<true>(a, b, dim, out);
}

/// # Safety
/// The processor must have the features below.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn products_avx2(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    products_by::<true>(a, b, dim, out);
}

#[inline(always)]
fn products_by<const FUSED: bool>(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    let columns = b.len() / dim;
    for (i, a) in a.chunks_exact(dim).enumerate() {
        let out = &mut out[i * columns..][..columns];
        for (b, out) in b.chunks(ROWS * dim).zip(out.chunks_mut(ROWS)) {
            match b.len() / dim {
                ROWS => out.copy_from_slice(&row_products::<ROWS, FUSED>(a, b, dim)),
                _ => {
                    for (b, out) in b.chunks_exact(dim).zip(out) {
                        [*out] = row_products::<1, FUSED>(a, b, dim);
                    }
                }
            }
        }
    }
}

/// Products of one row with `N` rows.
#[inline(always)]
fn row_products<const N: usize, const FUSED: bool>(a: &[f32], b: &[f32], dim: usize) -> [f32; N] {
    let b: [&[f32]; N] = std::array::from_fn(|n| &b[n * dim..][..dim]);
    let whole = dim / LANES * LANES;
    let mut sums = [[0f32; LANES]; N];
    for start in (0..whole).step_by(LANES) {
        let a: &[f32; LANES] = a[start..start + LANES].try_into().expect("whole lanes");
        for (sums, b) in sums.iter_mut().zip(&b) {
            let b: &[f32; LANES] = b[start..start + LANES].try_into().expect("whole lanes");
            for lane in 0..LANES {
                sums[lane] =
                    if FUSED { a[lane].mul_add(b[lane], sums[lane]) } else { sums[lane] + a[lane] * b[lane] };
            }
        }
    }
    std::array::from_fn(|n| {
        let rest: f32 = a[whole..].iter().zip(&b[n][whole..]).map(|(a, b)| a * b).sum();
        sums[n].iter().sum::<f32>() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_meets_every_row() {
        for (n, m, dim) in [(1, 1, 1), (3, 4, 16), (5, 9, 37), (2, 7, 100)] {
            let number = |i: usize| ((i * 37) % 101) as f32 / 50.0 - 1.0;
            let a: Vec<f32> = (0..n * dim).map(number).collect();
            let b: Vec<f32> = (0..m * dim).map(|i| number(i + 5)).collect();
            let (mut out, mut scalar) = (vec![f32::NAN; n * m], vec![f32::NAN; n * m]);
            products(&a, &b, dim, &mut out);
            products_by::<false>(&a, &b, dim, &mut scalar);
            for i in 0..n {
                for j in 0..m {
                    let pairs = a[i * dim..][..dim].iter().zip(&b[j * dim..][..dim]);
                    let want: f32 = pairs.map(|(a, b)| a * b).sum();
                    assert!((out[i * m + j] - want).abs() < 1e-4);
                    assert!((scalar[i * m + j] - want).abs() < 1e-4);
                }
            }
        }
    }
}
