//! The directions along which rows vary most: principal axes without centring, which are the right singular vectors of the matrix
//! of rows.
//!
//! They come from the Gram matrix of the rows, by a Householder reduction to tridiagonal form and implicit QR steps with
//! Wilkinson's shift (Golub and Van Loan, "Matrix Computations", 8.3). That is far cheaper than decomposing the rows themselves,
//! of which there are many more than dimensions, and it squares the condition number: directions whose singular value is below
//! about 1e-4 of the largest are mixed with each other. What is stored in bf16 does not see that.

use kvik_kernels::products;

/// Numbers that are summed in f32 before the sum goes on in f64.
const RUN: usize = 256;
/// Columns whose products with all before them are taken together.
const COLUMNS: usize = 16;

/// `rowsᵀ · rows`, `[dim, dim]`, of `rows`, `[n, dim]`.
pub(crate) fn gram(rows: &[f32], dim: usize) -> Vec<f64> {
    let mut gram = vec![0f64; dim * dim];
    let (mut columns, mut sums) = (vec![0f32; dim * RUN], vec![0f32; COLUMNS * dim]);
    for run in rows.chunks(RUN * dim) {
        let len = run.len() / dim;
        for (index, row) in run.chunks_exact(dim).enumerate() {
            for (column, &x) in columns.chunks_exact_mut(RUN).zip(row) {
                column[index] = x;
            }
        }
        columns.chunks_exact_mut(RUN).for_each(|column| column[len..].fill(0.0));
        for first in (0..dim).step_by(COLUMNS) {
            let end = (first + COLUMNS).min(dim);
            let sums = &mut sums[..(end - first) * end];
            products(&columns[first * RUN..end * RUN], &columns[..end * RUN], RUN, sums);
            for (i, sums) in (first..end).zip(sums.chunks_exact(end)) {
                gram[i * dim..].iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
            }
        }
    }
    for i in 0..dim {
        for j in 0..i {
            gram[j * dim + i] = gram[i * dim + j];
        }
    }
    gram
}

/// Coefficients of rows (`[n, width]`) over directions of length 1, `[n, rank]`.
pub(crate) fn project(rows: &[f32], width: usize, directions: &[f32]) -> Vec<f32> {
    let mut coefficients = vec![0.0; rows.len() / width * (directions.len() / width)];
    products(rows, directions, width, &mut coefficients);
    coefficients
}

/// The part of the rows' energy that their coefficients miss.
pub(crate) fn residual(rows: &[f32], width: usize, directions: &[f32], coefficients: &[f32]) -> f64 {
    let rank = directions.len() / width;
    let (mut missed, mut all) = (0f64, 0f64);
    for (row, coefficients) in rows.chunks_exact(width).zip(coefficients.chunks_exact(rank)) {
        let mut left = row.to_vec();
        for (direction, &c) in directions.chunks_exact(width).zip(coefficients) {
            left.iter_mut().zip(direction).for_each(|(left, x)| *left -= c * x);
        }
        missed += energy(&left);
        all += energy(row);
    }
    missed / all.max(f64::MIN_POSITIVE)
}

/// The square of a row's length.
fn energy(row: &[f32]) -> f64 {
    f64::from(row.iter().map(|x| x * x).sum::<f32>())
}

/// How much of the energy of rows (`[n, dim]`) lies along each of their principal directions, in falling order: the squares of
/// their singular values.
pub fn energies(rows: &[f32], dim: usize) -> Vec<f64> {
    symmetric_eigen(gram(rows, dim), dim).0
}

/// Eigenvalues of a symmetric matrix (`[dim, dim]`) in falling order, and the eigenvectors, of length 1, as rows in that order.
pub(crate) fn symmetric_eigen(mut matrix: Vec<f64>, dim: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(&mut matrix, dim);
    diagonalise(&mut diagonal, &mut beside, &mut vectors);
    let mut order: Vec<usize> = (0..dim).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    let values = order.iter().map(|&index| diagonal[index]).collect();
    let vectors = order.iter().flat_map(|&index| &vectors[index * dim..][..dim]).copied().collect();
    (values, vectors)
}

/// Diagonal and secondary diagonal of `Q · matrix · Qᵀ`, and the orthogonal `Q`.
fn tridiagonal(matrix: &mut [f64], dim: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut q = vec![0f64; dim * dim];
    for i in 0..dim {
        q[i * dim + i] = 1.0;
    }
    let mut product = vec![0f64; dim];
    for k in 0..dim.saturating_sub(2) {
        // The reflection that leaves only the first entry of what stands below the diagonal in column `k`.
        let mut reflector: Vec<f64> = (k + 1..dim).map(|i| matrix[i * dim + k]).collect();
        let length = reflector.iter().map(|x| x * x).sum::<f64>().sqrt();
        if length == 0.0 {
            continue;
        }
        reflector[0] += length.copysign(reflector[0]);
        let length = reflector.iter().map(|x| x * x).sum::<f64>().sqrt();
        reflector.iter_mut().for_each(|x| *x /= length);
        // From both sides of the matrix: it loses `v wᵀ + w vᵀ` with `w = 2 A v − 2 (vᵀ A v) v`.
        for i in k..dim {
            product[i] = 2.0 * inner(&matrix[i * dim + k + 1..][..dim - k - 1], &reflector);
        }
        let along = inner(&product[k + 1..], &reflector);
        for (p, &v) in product[k + 1..].iter_mut().zip(&reflector) {
            *p -= along * v;
        }
        for i in k..dim {
            let v = if i > k { reflector[i - k - 1] } else { 0.0 };
            let w = product[i];
            let row = &mut matrix[i * dim + k + 1..][..dim - k - 1];
            for ((x, &vj), &wj) in row.iter_mut().zip(&reflector).zip(&product[k + 1..]) {
                *x -= v * wj + w * vj;
            }
        }
        for i in k + 1..dim {
            matrix[i * dim + k] = matrix[k * dim + i];
        }
        // From the left of `Q`.
        let mut sums = vec![0f64; dim];
        for (i, &v) in (k + 1..dim).zip(&reflector) {
            sums.iter_mut().zip(&q[i * dim..][..dim]).for_each(|(sum, &x)| *sum += v * x);
        }
        for (i, &v) in (k + 1..dim).zip(&reflector) {
            q[i * dim..][..dim].iter_mut().zip(&sums).for_each(|(x, &sum)| *x -= 2.0 * v * sum);
        }
    }
    let diagonal = (0..dim).map(|i| matrix[i * dim + i]).collect();
    let beside = (1..dim).map(|i| matrix[i * dim + i - 1]).collect();
    (diagonal, beside, q)
}

/// Steps per dimension after which a matrix that has not become diagonal is left: two are usual, and numbers that are not finite
/// never arrive.
const MOST_STEPS: usize = 64;

/// Turns a tridiagonal matrix into a diagonal one; `vectors` turn along, as rows.
fn diagonalise(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64]) {
    let dim = diagonal.len();
    let mut end = dim.saturating_sub(1);
    let mut steps = 0;
    while end > 0 && steps < MOST_STEPS * dim {
        steps += 1;
        for i in 0..end {
            if beside[i].abs() <= f64::EPSILON * (diagonal[i].abs() + diagonal[i + 1].abs()) {
                beside[i] = 0.0;
            }
        }
        if beside[end - 1] == 0.0 {
            end -= 1;
            continue;
        }
        let start = (0..end).rev().find(|&i| beside[i] == 0.0).map_or(0, |i| i + 1);
        qr_step(diagonal, beside, vectors, start, end);
    }
}

/// One implicit QR step on rows `start..=end` of a tridiagonal matrix.
fn qr_step(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], start: usize, end: usize) {
    let dim = diagonal.len();
    let half = (diagonal[end - 1] - diagonal[end]) / 2.0;
    let last = beside[end - 1];
    let shift = diagonal[end] - last * last / (half + half.hypot(last).copysign(half));
    let (mut x, mut bulge) = (diagonal[start] - shift, beside[start]);
    for k in start..end {
        let length = x.hypot(bulge);
        let (cos, sin) = if length > 0.0 { (x / length, bulge / length) } else { (1.0, 0.0) };
        if k > start {
            beside[k - 1] = length;
        }
        let (a, b, c) = (diagonal[k], beside[k], diagonal[k + 1]);
        diagonal[k] = cos * cos * a + 2.0 * cos * sin * b + sin * sin * c;
        diagonal[k + 1] = sin * sin * a - 2.0 * cos * sin * b + cos * cos * c;
        beside[k] = (cos * cos - sin * sin) * b + cos * sin * (c - a);
        if k + 1 < end {
            x = beside[k];
            bulge = sin * beside[k + 1];
            beside[k + 1] *= cos;
        }
        let (upper, lower) = vectors[k * dim..][..2 * dim].split_at_mut(dim);
        for (u, l) in upper.iter_mut().zip(lower) {
            (*u, *l) = (cos * *u + sin * *l, cos * *l - sin * *u);
        }
    }
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a_lanes, b_lanes) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(matrix: &[f64], dim: usize) {
        let (values, vectors) = symmetric_eigen(matrix.to_vec(), dim);
        let size = matrix.iter().fold(1e-300, |most: f64, x| most.max(x.abs()));
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        for i in 0..dim {
            let v = &vectors[i * dim..][..dim];
            for j in 0..dim {
                let along = inner(&matrix[j * dim..][..dim], v);
                assert!((along - values[i] * v[j]).abs() < 1e-12 * size * dim as f64);
                let product = inner(v, &vectors[j * dim..][..dim]);
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }

    proptest! {
        #[test]
        fn eigenvectors_of_random_symmetric_matrices(dim in 1usize..24, rank in 0usize..24, seed in any::<u64>()) {
            let mut state = seed;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as f64 / (1u64 << 30) as f64 - 1.0
            };
            // A sum of few products, so that eigenvalues repeat at zero; with all its terms, any matrix.
            let mut matrix = vec![0f64; dim * dim];
            for _ in 0..rank {
                let (v, sign) = ((0..dim).map(|_| noise()).collect::<Vec<_>>(), noise().signum());
                for i in 0..dim {
                    for j in 0..dim {
                        matrix[i * dim + j] += sign * v[i] * v[j];
                    }
                }
            }
            check(&matrix, dim);
        }
    }

    #[test]
    fn eigenvectors_of_special_matrices() {
        check(&[3.0], 1);
        check(&[0.0; 16], 4);
        let mut diagonal = vec![0.0; 25];
        (0..5).for_each(|i| diagonal[i * 6] = [1.0, 1e12, 1.0, -3.0, 1e-9][i]);
        check(&diagonal, 5);
        // Eigenvalues that are known: 2 − 2 cos(πk / (n + 1)).
        let dim = 60;
        let mut chain = vec![0.0; dim * dim];
        for i in 0..dim {
            chain[i * dim + i] = 2.0;
            if i > 0 {
                (chain[i * dim + i - 1], chain[(i - 1) * dim + i]) = (-1.0, -1.0);
            }
        }
        check(&chain, dim);
        let (values, _) = symmetric_eigen(chain, dim);
        for (index, value) in values.into_iter().rev().enumerate() {
            let want = 2.0 - 2.0 * (std::f64::consts::PI * (index + 1) as f64 / (dim + 1) as f64).cos();
            assert!((value - want).abs() < 1e-12, "{value} {want}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_come_to_an_end() {
        let (values, _) = symmetric_eigen(vec![f64::NAN; 25], 5);
        assert_eq!(values.len(), 5);
    }

    #[test]
    fn a_gram_matrix_is_the_products_of_columns() {
        let (rows, dim) = (600, 19);
        let numbers: Vec<f32> = (0..rows * dim).map(|i| ((i * 29) % 97) as f32 / 48.0 - 1.0).collect();
        let gram = gram(&numbers, dim);
        for i in 0..dim {
            for j in 0..dim {
                let want: f64 = (0..rows)
                    .map(|row| f64::from(numbers[row * dim + i]) * f64::from(numbers[row * dim + j]))
                    .sum();
                assert!((gram[i * dim + j] - want).abs() < 1e-3, "{i} {j}");
            }
        }
    }
}
