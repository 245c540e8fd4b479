//! Matrix products of activations with packed weights: `out[row, o] = Σ_k x[row, k] · w[o, k]`.
//!
//! ```text
//! let mut builder = PackedMatrix::builder(ty, out_features, in_features)?;  // once for each matrix of a model
//! builder.push_rows(&pool, rows_of_the_file)?;                              // repeatedly
//! let weight = builder.finish()?;
//!
//! let mut acts = Activations::new();                                        // once for each model
//! acts.set_for(&pool, &x, &phases, in_features, [&wq, …]);                  // once for each set of matrices
//! matmul(&pool, &acts, &mut [Product { weight: &wq, bias: None, out: &mut q, accumulate: false }, …]);
//! ```
//!
//! Weights keep the precision of their file. Products with quantised weights are integer products of blocks of 32
//! inputs, with activations in 15 bits ([`Activations`]); products with floating-point weights are in `f32` throughout.
//! Only the rows of prompts ([`Phase::Prefill`]), on sets that multiply bf16 faster, take products in bf16 (see `bf16`).
//!
//! How the work is cut: a piece is two panels (32 output features) by up to 96 rows, in bf16 up to 512. For few rows the
//! weights are decoded in registers on their way to the multiplier; for more, a chunk of both panels is first taken
//! apart into the first-level cache, and tiles of a few rows run over it. Either way a row's result has
//! the same bits (see `integer_tile`), so that neither batching nor threads can be told from the output.

mod activations;
mod bf16;
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
use crate::{Isa, Phase, ThreadPool, disjoint::Disjoint};

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
    dispatch(isa, Matmul { isa, pool, acts, products });
}

struct Matmul<'a, 'b> {
    isa: Isa,
    pool: &'a ThreadPool,
    acts: &'a Activations,
    products: &'a mut [Product<'b>],
}

impl Program for Matmul<'_, '_> {
    fn run<L: Lanes + Sync>(self, lanes: L) {
        let Self { isa, pool, acts, products } = self;
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
        let blocks = row_blocks(acts);
        let grain = grain(pool, acts.rows(), units, bytes);
        let count = blocks.clone().count();
        // Row blocks outermost: their activations stay in the second-level cache while the weights stream by.
        pool.for_each_piece(units * count, grain, |indices| {
            for index in indices {
                let (rows, in_bf16) = blocks.clone().nth(index / units).expect("one of the row blocks");
                let mut unit = index % units;
                for (weight, out) in work.iter().flatten() {
                    let its_units = weight.panels().div_ceil(PIECE_PANELS);
                    if unit < its_units {
                        let first = PIECE_PANELS * unit;
                        let panels = first..weight.panels().min(first + PIECE_PANELS);
                        // SAFETY: every index is another part of an output, and is handed out once.
                        let piece = unsafe { Piece::new(acts, weight, panels, rows, out) };
                        if in_bf16 {
                            piece.multiply_prompt(isa, lanes)
                        } else {
                            piece.multiply(lanes)
                        }
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

/// Even cuts of the rows of each phase into blocks, and whether a block is multiplied in bf16 where its weights are.
fn row_blocks(acts: &Activations) -> impl Iterator<Item = (Range<usize>, bool)> + Clone {
    acts.phases().runs().flat_map(|(rows, phase)| {
        let in_bf16 = phase == Phase::Prefill && acts.prefills_in_bf16();
        // Those in bf16 are made of whole tiles.
        let (unit, most) = if in_bf16 { (bf16::TILE_ROWS, bf16::ROW_BLOCK) } else { (1, ROW_BLOCK) };
        let units = rows.start / unit..rows.end.div_ceil(unit);
        even_cuts(units, most / unit)
            .map(move |block| (rows.start.max(block.start * unit)..rows.end.min(block.end * unit), in_bf16))
    })
}

/// Even cuts of `rows` into ranges of at most `most`.
fn even_cuts(rows: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (start, len, cuts) = (rows.start, rows.len(), rows.len().div_ceil(most));
    (0..cuts).map(move |cut| start + len * cut / cuts..start + len * (cut + 1) / cuts)
}

#[inline(always)]
fn prefetch<L: Lanes>(lanes: L, from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        lanes.prefetch(from.wrapping_add(line));
    }
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
