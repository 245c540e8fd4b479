//! Matrix products of activations with packed weights: `out[row, o] = Σ_k x[row, k] · w[o, k]`.
//!
//! ```text
//! let mut builder = PackedMatrix::builder(ty, out_features, in_features)?;  // once for each matrix of a model
//! builder.push_rows(&pool, rows_of_the_file)?;                              // repeatedly
//! let weight = builder.finish()?;
//!
//! let mut acts = Activations::new();                                        // once for each model
//! acts.set_for(&pool, &x, rows, in_features, [&wq, …]);                     // once for each set of matrices
//! matmul(&pool, &acts, &mut [Product { weight: &wq, bias: None, out: &mut q, accumulate: false }, …]);
//! ```
//!
//! Weights keep the precision of their file. Products with quantised weights are integer products of blocks of 32
//! inputs, with activations in 15 bits ([`Activations`]); products with floating-point weights are in `f32` throughout.
//!
//! How the work is cut: a piece is two panels (32 output features) by up to 96 rows. For few rows the
//! weights are decoded in registers on their way to the multiplier; for more, a chunk of both panels is first taken
//! apart into the first-level cache, and tiles of a few rows run over it. Either way a row's result has
//! the same bits (see `integer_tile`), so that neither batching nor threads can be told from the output.

mod activations;
mod float_tile;
mod integer_tile;
mod lanes;
mod pack;
mod packed_matrix;
mod panel;
mod piece;

use std::ops::Range;

pub use activations::Activations;
pub use packed_matrix::{Builder, PackError, PackedMatrix};

use self::{
    lanes::{Lanes, Program, dispatch},
    piece::{Output, PIECE_PANELS, Piece, ROW_BLOCK},
};
use crate::{Isa, ThreadPool, disjoint::Disjoint};

/// How far ahead of its use a panel is asked for. The hardware's prefetcher stops at pages and waits for a pattern; this
/// much in flight brings one row from 30 to 38 GB/s and four from 15-25 to 35 GB/s out of memory (2 to 4 KiB: less).
const PREFETCH_BYTES: usize = 8 << 10;

/// Products that one parallel region takes.
pub const MAX_PRODUCTS: usize = 8;

/// One product of a parallel region.
pub struct Product<'a> {
    /// The weights, `[out_features, in_features]`.
    pub weight: &'a PackedMatrix,
    /// Added to every row, `[out_features]`.
    pub bias: Option<&'a [f32]>,
    /// The result, `[rows, out_features]`.
    pub out: &'a mut [f32],
    /// Adds the result to what `out` holds (a residual) instead of replacing it.
    pub accumulate: bool,
}

/// Multiplies the activations with all weights of `products`, in one parallel region.
///
/// Each row of each result has the same bits whatever the other rows, the other products and the number of threads.
/// Does not allocate.
///
/// # Panics
/// If shapes do not match, if `acts` was prepared for other formats, or for more than [`MAX_PRODUCTS`] products.
pub fn matmul(pool: &ThreadPool, acts: &Activations, products: &mut [Product<'_>]) {
    matmul_with(Isa::active(), pool, acts, products);
}

/// [`matmul`] on a given instruction set, for tests and measurements.
///
/// # Panics
/// As [`matmul`], and if this processor does not have `isa`.
pub fn matmul_with(isa: Isa, pool: &ThreadPool, acts: &Activations, products: &mut [Product<'_>]) {
    assert!(products.len() <= MAX_PRODUCTS, "{} products in one region", products.len());
    dispatch(isa, Matmul { pool, acts, products });
}

struct Matmul<'a, 'b> {
    pool: &'a ThreadPool,
    acts: &'a Activations,
    products: &'a mut [Product<'b>],
}

impl Program for Matmul<'_, '_> {
    fn run<L: Lanes + Sync>(self, lanes: L) {
        let Self { pool, acts, products } = self;
        let mut work = [const { None }; MAX_PRODUCTS];
        let (mut units, mut bytes) = (0, 0);
        for (product, work) in products.iter_mut().zip(&mut work) {
            let weight = product.weight;
            check_columns(acts, weight);
            let width = weight.out_features();
            assert_eq!(product.out.len(), acts.rows() * width, "the result is [rows, out_features]");
            assert!(product.bias.is_none_or(|bias| bias.len() == width), "a bias is [out_features]");
            let out = Output {
                values: Disjoint::new(product.out),
                features: width,
                bias: product.bias,
                accumulate: product.accumulate,
            };
            units += weight.panels().div_ceil(PIECE_PANELS);
            bytes += weight.bytes();
            *work = Some((weight, out));
        }
        let blocks = row_blocks(acts.rows());
        let grain = grain(pool, acts.rows(), units, bytes);
        // Row blocks outermost: their activations stay in the second-level cache while the weights stream by.
        pool.for_each_piece(units * blocks.len(), grain, |indices| {
            for index in indices {
                let rows = blocks.clone().nth(index / units).expect("one of the row blocks");
                let mut unit = index % units;
                for (weight, out) in work.iter().flatten() {
                    let its_units = weight.panels().div_ceil(PIECE_PANELS);
                    if unit < its_units {
                        let first = PIECE_PANELS * unit;
                        let panels = first..weight.panels().min(first + PIECE_PANELS);
                        // SAFETY: every index is another part of an output, and is handed out once.
                        let piece = unsafe { Piece::new(acts, weight, panels, rows, out) };
                        piece.multiply(lanes);
                        break;
                    }
                    unit -= its_units;
                }
            }
        });
    }
}

fn check_columns(acts: &Activations, weight: &PackedMatrix) {
    assert_eq!(acts.cols(), weight.in_features(), "activation rows and weight rows differ in length");
}

/// Even cuts of `0..rows` into blocks of at most [`ROW_BLOCK`].
fn row_blocks(rows: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    let blocks = rows.div_ceil(ROW_BLOCK);
    (0..blocks).map(move |block| rows * block / blocks..rows * (block + 1) / blocks)
}

/// How many units (pairs of panels) a thread takes at a time.
fn grain(pool: &ThreadPool, rows: usize, units: usize, bytes: usize) -> usize {
    if rows > ROW_BLOCK {
        return 1;
    }
    // Bound by memory: runs for the prefetcher, but no tail that the other threads wait for.
    const RUN_BYTES: usize = 128 << 10;
    let run = units * RUN_BYTES / bytes.max(1);
    run.min(units / (4 * pool.threads())).max(1)
}
