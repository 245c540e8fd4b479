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
mod output;
mod pack;
mod packed_matrix;
mod panel;
mod piece;

use std::ops::Range;

pub use activations::Activations;
pub use packed_matrix::{Builder, PackError, PackedMatrix};

use self::{
    lanes::{LANES, Lanes, Program, dispatch},
    output::{Epilogue, Output},
    piece::{PIECE_PANELS, PanelPair, Piece, ROW_BLOCK},
};
use crate::{Activation, Isa, Phase, ThreadPool, disjoint::Disjoint};

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

/// `out = activation(gate x) · up x` (Shazeer 2020), without ever storing either factor.
pub struct GatedProduct<'a> {
    /// `[out_features, in_features]`
    pub gate: &'a PackedMatrix,
    /// Of the same shape and type.
    pub up: &'a PackedMatrix,
    /// The gate's non-linearity.
    pub activation: Activation,
    /// The result, `[rows, out_features]`.
    pub out: &'a mut [f32],
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
    let mut work = [const { None }; MAX_PRODUCTS];
    for (product, work) in products.iter_mut().zip(&mut work) {
        let features = product.weight.out_features();
        assert!(product.bias.is_none_or(|bias| bias.len() == features), "a bias is [out_features]");
        let epilogue = Epilogue::Sum { bias: product.bias, accumulate: product.accumulate };
        *work = Some(Work::new(acts, [product.weight; 2], product.out, epilogue));
    }
    dispatch(isa, Matmul { isa, pool, acts, work: &work });
}

/// Multiplies the activations with a gate and what it gates, in one parallel region. As [`matmul`] otherwise.
///
/// # Panics
/// If shapes or types do not match, or if `acts` was prepared for other formats.
pub fn matmul_gated(pool: &ThreadPool, acts: &Activations, product: GatedProduct<'_>) {
    matmul_gated_with(Isa::active(), pool, acts, product);
}

/// [`matmul_gated`] on a given instruction set, for tests and measurements.
///
/// # Panics
/// As [`matmul_gated`], and if this processor does not have `isa`.
pub fn matmul_gated_with(isa: Isa, pool: &ThreadPool, acts: &Activations, product: GatedProduct<'_>) {
    let GatedProduct { gate, up, activation, out } = product;
    assert!(
        gate.ty() == up.ty() && gate.out_features() == up.out_features(),
        "a gate and its projection are alike"
    );
    let work = Work::new(acts, [gate, up], out, Epilogue::Gate(activation));
    dispatch(isa, Matmul { isa, pool, acts, work: &[Some(work)] });
}

/// A product, cut into units: pairs of panels.
struct Work<'a> {
    /// Twice the same matrix, or a gate and what it gates.
    weights: [&'a PackedMatrix; 2],
    units: usize,
    out: Output<'a>,
}

impl<'a> Work<'a> {
    fn new(
        acts: &Activations,
        weights: [&'a PackedMatrix; 2],
        out: &'a mut [f32],
        epilogue: Epilogue<'a>,
    ) -> Self {
        for weight in weights {
            assert_eq!(acts.cols(), weight.in_features(), "activation rows and weight rows differ in length");
        }
        let features = weights[0].out_features();
        assert_eq!(out.len(), acts.rows() * features, "the result is [rows, out_features]");
        let panels = weights[0].panels();
        let units =
            if matches!(epilogue, Epilogue::Gate(_)) { panels } else { panels.div_ceil(PIECE_PANELS) };
        Self { weights, units, out: Output { values: Disjoint::new(out), features, epilogue } }
    }

    fn is_gated(&self) -> bool {
        matches!(self.out.epilogue, Epilogue::Gate(_))
    }

    fn bytes(&self) -> usize {
        self.weights[0].bytes() * if self.is_gated() { 2 } else { 1 }
    }

    fn pair(&self, unit: usize) -> PanelPair<'a> {
        let (weights, last) = (self.weights, self.weights[0].panels() - 1);
        if self.is_gated() {
            return PanelPair {
                weights,
                is_single: false,
                panels: [unit; 2],
                first: unit * LANES,
                features: LANES,
                ahead: 1,
            };
        }
        let first = PIECE_PANELS * unit;
        let panels = [first, last.min(first + 1)];
        PanelPair {
            weights,
            is_single: panels[0] == panels[1],
            panels,
            first: first * LANES,
            features: PIECE_PANELS * LANES,
            ahead: PIECE_PANELS,
        }
    }
}

struct Matmul<'a> {
    isa: Isa,
    pool: &'a ThreadPool,
    acts: &'a Activations,
    work: &'a [Option<Work<'a>>],
}

impl Program for Matmul<'_> {
    fn run<L: Lanes + Sync>(self, lanes: L) {
        let Self { isa, pool, acts, work } = self;
        let units = work.iter().flatten().map(|work| work.units).sum::<usize>();
        let bytes = work.iter().flatten().map(Work::bytes).sum::<usize>();
        let blocks = row_blocks(acts);
        let grain = grain(pool, acts.rows(), units, bytes);
        let count = blocks.clone().count();
        let Some(first_block) = blocks.clone().next() else { return };
        // Row blocks outermost: their activations stay in the second-level cache while the weights stream by.
        pool.for_each_piece(units * count, grain, |indices| {
            for index in indices {
                // A decode step has one block, and its pieces are too short to look for it each time.
                let (mut unit, (rows, in_bf16)) = if count == 1 {
                    (index, first_block.clone())
                } else {
                    (index % units, blocks.clone().nth(index / units).expect("one of the row blocks"))
                };
                for work in work.iter().flatten() {
                    if unit < work.units {
                        // SAFETY: every index is another part of an output, and is handed out once.
                        let piece = unsafe { Piece::new(acts, work.pair(unit), rows, &work.out) };
                        if in_bf16 {
                            piece.multiply_prompt(isa, lanes)
                        } else {
                            piece.multiply(lanes)
                        }
                        break;
                    }
                    unit -= work.units;
                }
            }
        });
    }
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
    // Bound by memory: a thread's units follow each other whatever the grain, so that pieces need only be longer than it takes to
    // hand them out. Nine pieces for two threads, which 128 KiB gave, were waited for.
    const RUN_BYTES: usize = 16 << 10;
    let run = units * RUN_BYTES / bytes.max(1);
    run.min(units / (4 * pool.threads())).max(1)
}
