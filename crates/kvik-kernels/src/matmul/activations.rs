//! The left operand of a product: rows of activations, as the weight formats need them.
//!
//! Quantised weights meet activations in 15 bits: blocks of 32 with an `f32` scale of `max |x| / 16256`, rounded to the
//! nearest code (ties to even). A code is split into two planes of 8 bits, `128 · high + low`, so that the 8-bit dot
//! products of the processor multiply both exactly. One plane alone, as other engines have it, costs a language model a
//! divergence of about 0.003 from its exact next-token distribution, and three of a hundred top tokens; two planes cost
//! 0.00001, less than the rounding of a bf16 cache. Everything that depends on a block of activations alone is stored
//! beside its codes, so that a kernel reads one stream for each row. Floating-point weights meet the `f32` rows.
//!
//! The rows of prompts are rounded to bf16 instead where that is how they are multiplied.

use super::{
    PackedMatrix,
    bf16::{self, Bf16Rows},
    lanes::{Kernel, Lanes, Program, dispatch},
};
use crate::{
    Isa, Phase, Phases, ThreadPool,
    disjoint::Disjoint,
    quant::{TensorType, block_format::BLOCK},
};

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
    phases: Phases,
    cols: usize,
    /// Of rows that are multiplied in integers; the others' are not filled.
    blocks: Vec<QuantizedBlock>,
    /// Of rows that are multiplied in bf16; the others' are not filled.
    bf16_rows: Bf16Rows,
    floats: Vec<f32>,
    prefills_in_bf16: bool,
    /// Which are filled.
    has_blocks: bool,
    has_bf16_rows: bool,
    has_floats: bool,
}

impl Activations {
    /// An empty workspace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares `x`, `[rows, cols]` with rows of these `phases`, for products with these `weights` only: no copy that they
    /// do not need.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn set_for<'a>(
        &mut self,
        pool: &ThreadPool,
        x: &[f32],
        phases: &Phases,
        cols: usize,
        weights: impl IntoIterator<Item = &'a PackedMatrix>,
    ) {
        self.set_for_isa(Isa::active(), pool, x, phases, cols, weights);
    }

    /// [`Self::set_for`] products on a given instruction set, for tests and measurements.
    ///
    /// # Panics
    /// As [`Self::set_for`], and if this processor does not have `isa`.
    pub fn set_for_isa<'a>(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: &[f32],
        phases: &Phases,
        cols: usize,
        weights: impl IntoIterator<Item = &'a PackedMatrix>,
    ) {
        let (mut floats, mut quantized, mut bf16) = (false, false, false);
        for weight in weights {
            floats |= is_float(weight.ty());
            quantized |= !is_float(weight.ty());
            bf16 |= bf16::takes(weight.ty());
        }
        assert_eq!(phases.rows().checked_mul(cols), Some(x.len()), "activations are [rows, cols]");
        self.phases.copy_from(phases);
        self.cols = cols;
        self.prefills_in_bf16 = isa.prefills_in_bf16();
        self.has_floats = floats;
        // No quantised format has rows that are not made of whole blocks.
        self.has_blocks = quantized && cols.is_multiple_of(BLOCK);
        self.has_bf16_rows = bf16 && self.prefills_in_bf16;
        if self.has_floats {
            self.floats.clear();
            self.floats.extend_from_slice(x);
        }
        if self.has_blocks {
            let count = x.len() / BLOCK;
            if self.blocks.len() < count {
                self.blocks.resize(count, QuantizedBlock::default());
            }
        }
        if self.has_bf16_rows {
            self.bf16_rows.resize(phases.rows(), cols);
        }
        dispatch(isa, Prepare { pool, x, acts: self });
    }

    /// Rows of the last [`Self::set_for`].
    pub fn rows(&self) -> usize {
        self.phases.rows()
    }

    /// What they are computed for.
    pub(super) fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Whether rows of prompts are multiplied in bf16, with weights that are.
    pub(super) fn prefills_in_bf16(&self) -> bool {
        self.prefills_in_bf16
    }

    /// Elements of a row of the last [`Self::set_for`].
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The quantised rows, `[rows, cols / 32]`.
    pub(super) fn blocks(&self) -> &[QuantizedBlock] {
        assert!(self.has_blocks, "the activations were not prepared for quantised weights");
        &self.blocks[..self.rows() * self.cols / BLOCK]
    }

    /// The rows of prompts in bf16.
    pub(super) fn bf16_rows(&self) -> &Bf16Rows {
        assert!(self.has_bf16_rows, "the activations were not prepared for products in bf16");
        &self.bf16_rows
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

/// Fills what the products need, run of rows by run of rows.
struct Prepare<'a> {
    pool: &'a ThreadPool,
    x: &'a [f32],
    acts: &'a mut Activations,
}

impl Program for Prepare<'_> {
    fn run<L: Lanes + Sync>(self, lanes: L) {
        let Self { pool, x, acts } = self;
        let cols = acts.cols;
        for (rows, phase) in acts.phases.runs() {
            if phase == Phase::Prefill && acts.prefills_in_bf16 {
                if acts.has_bf16_rows {
                    acts.bf16_rows.fill(lanes, pool, x, cols, rows);
                }
            } else if acts.has_blocks {
                let blocks = rows.start * cols / BLOCK..rows.end * cols / BLOCK;
                quantize(lanes, pool, &x[rows.start * cols..rows.end * cols], &mut acts.blocks[blocks]);
            }
        }
    }
}

fn quantize<L: Lanes + Sync>(lanes: L, pool: &ThreadPool, x: &[f32], blocks: &mut [QuantizedBlock]) {
    let grain = if x.len() < PARALLEL_ELEMENTS { usize::MAX } else { PARALLEL_ELEMENTS / BLOCK / 4 };
    let (from, _) = x.as_chunks::<BLOCK>();
    let blocks = Disjoint::new(blocks);
    pool.for_each_piece(from.len(), grain, |piece| {
        // SAFETY: pieces are disjoint.
        let to = unsafe { blocks.slice(piece.clone()) };
        lanes.enter(QuantizeBlocks { from: &from[piece], to });
    });
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
