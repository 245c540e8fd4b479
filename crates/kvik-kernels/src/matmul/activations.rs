//! The left operand of a product: rows of activations, as the weight formats need them.
//!
//! Quantised weights meet activations in 15 bits: blocks of 32 with an `f32` scale of `max |x| / 16256`, rounded to the
//! nearest code (ties to even). A code is split into two planes of 8 bits, `128 · high + low`, so that the 8-bit dot
//! products of the processor multiply both exactly. One plane alone, as other engines have it, costs a language model a
//! divergence of about 0.003 from its exact next-token distribution, and three of a hundred top tokens; two planes cost
//! 0.00001, less than the rounding of a bf16 cache. Everything that depends on a block of activations alone is stored
//! beside its codes, so that a kernel reads one stream for each row. Floating-point weights meet the `f32` rows.

use super::{
    PackedMatrix,
    lanes::{Kernel, Lanes, Program, dispatch},
};
use crate::{Isa, ThreadPool, disjoint::Disjoint, quant::TensorType, quant::block_format::BLOCK};

/// Elements below which a parallel region costs more than it gains.
const PARALLEL_ELEMENTS: usize = 16 << 10;

/// 32 activations: `x[i] ≈ scale · (128 · high[i] + low[i])`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct QuantizedBlock {
    /// In −127..=127.
    pub(super) high: [i8; BLOCK],
    /// In −64..=63.
    pub(super) low: [i8; BLOCK],
    pub(super) scale: f32,
    /// `scale · Σ codes`: what a weight's minimum is multiplied with.
    pub(super) scaled_sum: f32,
    /// `−128 · Σ codes`: what a zero point of 128 adds to the integer product.
    pub(super) zero_point_term: i32,
    /// The same for the first half of the codes.
    pub(super) first_half_term: i32,
}

/// The largest code: `127` in the high plane, nothing in the low one.
const MAX_CODE: i32 = 127 * 128;

/// Rows of activations `[rows, in_features]`, prepared for products with any number of matrices.
///
/// A workspace: it keeps its memory, so that after the largest batch was seen no call allocates.
#[derive(Default)]
pub struct Activations {
    rows: usize,
    cols: usize,
    blocks: Vec<QuantizedBlock>,
    floats: Vec<f32>,
    /// Which of the two are filled.
    has_blocks: bool,
    has_floats: bool,
}

impl Activations {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares `x`, `[rows, cols]`, for products with these `weights` only: no copy that they do not need.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn set_for<'a>(
        &mut self,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        cols: usize,
        weights: impl IntoIterator<Item = &'a PackedMatrix>,
    ) {
        let (mut floats, mut blocks) = (false, false);
        for weight in weights {
            floats |= is_float(weight.ty());
            blocks |= !is_float(weight.ty());
        }
        assert_eq!(rows.checked_mul(cols), Some(x.len()), "activations are [rows, cols]");
        (self.rows, self.cols) = (rows, cols);
        self.has_floats = floats;
        // No quantised format has rows that are not made of whole blocks.
        self.has_blocks = blocks && cols.is_multiple_of(BLOCK);
        if self.has_floats {
            self.floats.clear();
            self.floats.extend_from_slice(x);
        }
        if self.has_blocks {
            let count = x.len() / BLOCK;
            if self.blocks.len() < count {
                self.blocks.resize(count, QuantizedBlock::default());
            }
            dispatch(Isa::active(), Quantize { pool, x, blocks: Disjoint::new(&mut self.blocks[..count]) });
        }
    }

    /// Rows of the last [`Self::set_for`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row of the last [`Self::set_for`].
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The quantised rows, `[rows, cols / 32]`.
    pub(super) fn blocks(&self) -> &[QuantizedBlock] {
        assert!(self.has_blocks, "the activations were not prepared for quantised weights");
        &self.blocks[..self.rows * self.cols / BLOCK]
    }

    /// The rows as they were set, `[rows, cols]`.
    pub(super) fn floats(&self) -> &[f32] {
        assert!(self.has_floats, "the activations were not prepared for floating-point weights");
        &self.floats
    }
}

pub(super) fn is_float(ty: TensorType) -> bool {
    matches!(ty, TensorType::F32 | TensorType::F16 | TensorType::BF16)
}

struct Quantize<'a> {
    pool: &'a ThreadPool,
    x: &'a [f32],
    blocks: Disjoint<'a, QuantizedBlock>,
}

impl Program for Quantize<'_> {
    fn run<L: Lanes + Sync>(self, lanes: L) {
        let grain = if self.x.len() < PARALLEL_ELEMENTS { usize::MAX } else { PARALLEL_ELEMENTS / BLOCK / 4 };
        let (from, _) = self.x.as_chunks::<BLOCK>();
        self.pool.for_each_piece(from.len(), grain, |piece| {
            // SAFETY: pieces are disjoint.
            let to = unsafe { self.blocks.slice(piece.clone()) };
            lanes.enter(QuantizeBlocks { from: &from[piece], to });
        });
    }
}

struct QuantizeBlocks<'a> {
    from: &'a [[f32; BLOCK]],
    to: &'a mut [QuantizedBlock],
}

impl Kernel for QuantizeBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for (x, block) in self.from.iter().zip(self.to) {
            quantize_block(x, block);
        }
    }
}

/// Written so that the compiler turns each loop into SIMD code; the same operations, and so the same bits, everywhere.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], block: &mut QuantizedBlock) {
    /// Largest magnitude that is treated as zero: the reciprocal of its scale would overflow.
    const ZERO: f32 = 1e-34;
    /// Adding 1.5 · 2^23 leaves the integer nearest to a small number, ties to even, in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;

    // Compared as integers the bits of non-negative numbers keep their order, and a NaN is above all of them:
    // it ends up in the scale and from there in every product, as it should.
    let mut max_bits = 0u32;
    for value in x {
        max_bits = max_bits.max(value.abs().to_bits());
    }
    let max = f32::from_bits(max_bits);
    let inverse = if max > ZERO { MAX_CODE as f32 / max } else { 0.0 };
    block.scale = if max <= ZERO { 0.0 } else { max / MAX_CODE as f32 };

    let mut codes = [0i32; BLOCK];
    for i in 0..BLOCK {
        let rounded = (x[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        // Only a NaN is outside: its code does not matter, but must not overflow the sums.
        codes[i] = rounded.clamp(-MAX_CODE, MAX_CODE);
    }
    let mut halves = [0i32; 2];
    for i in 0..BLOCK / 2 {
        halves[0] += codes[i];
        halves[1] += codes[BLOCK / 2 + i];
    }
    for i in 0..BLOCK {
        let high = (codes[i] + 64) >> 7;
        block.high[i] = high as i8;
        block.low[i] = (codes[i] - (high << 7)) as i8;
    }
    block.scaled_sum = block.scale * (halves[0] + halves[1]) as f32;
    block.zero_point_term = -128 * (halves[0] + halves[1]);
    block.first_half_term = -128 * halves[0];
}
