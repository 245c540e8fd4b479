//! Panels of weights, taken apart into bf16.
//!
//! A tile is 32 inputs of the panel's 16 outputs: `[pair of inputs][output][2]`, the right operand of the tile unit of AMX
//! and of the dot products of AVX-512. A weight is decoded to `f32` and then rounded to the nearest bf16.

use std::{marker::PhantomData, mem::MaybeUninit};

use super::{
    super::{
        lanes::{Kernel, LANES, Lanes},
        panel::{PAIRS, Packed, PanelFormat, block_of},
    },
    rows::STEP_INPUTS,
};
use crate::quant::block_format::{BLOCK, BlockFormat};

/// Bytes of a tile of weights.
pub(super) const WEIGHT_TILE_BYTES: usize = 2 * STEP_INPUTS * LANES;
/// Bytes of a pair of inputs of all outputs.
const PAIR_BYTES: usize = 4 * LANES;

/// Steps `first..first + steps` of a quantised panel.
pub(super) struct UnpackBlocks<'a, F> {
    pub(super) panel: &'a [u8],
    /// Panels from here to the one that comes after it.
    pub(super) ahead: usize,
    pub(super) first: usize,
    pub(super) steps: usize,
    /// [`WEIGHT_TILE_BYTES`] for each step.
    pub(super) to: &'a mut [MaybeUninit<u8>],
    pub(super) format: PhantomData<F>,
}

impl<F: BlockFormat> Kernel for UnpackBlocks<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        const { assert!(BLOCK == STEP_INPUTS, "a step is a block") };
        let span = Packed::<F>::SPAN;
        assert!(self.to.len() >= self.steps * WEIGHT_TILE_BYTES);
        for index in 0..self.steps {
            let block = self.first + index;
            let (header, codes) = block_of::<L, F>(lanes, self.panel, block, self.ahead);
            // SAFETY: the header and the codes are whole, and the tile inside `to`.
            unsafe {
                let to = self.to.as_mut_ptr().add(index * WEIGHT_TILE_BYTES).cast::<u8>();
                let halves = Packed::<F>::SCALES_PER_BLOCK;
                for half in 0..halves {
                    let scale = Packed::<F>::scale(lanes, header.as_ptr(), block % span.blocks, half);
                    let addend = if F::SCALES.has_min() {
                        Packed::<F>::min(lanes, header.as_ptr(), block % span.blocks)
                    } else {
                        lanes.mul(scale, lanes.splat(-f32::from(F::ZERO_POINT)))
                    };
                    for pair in half * PAIRS / halves..(half + 1) * PAIRS / halves {
                        let groups = Packed::<F>::codes(lanes, codes.as_ptr(), pair);
                        for i in 0..2 {
                            let to = to.add((4 * pair + 2 * i) * PAIR_BYTES);
                            if F::BITS < 8 {
                                store_narrow(lanes, groups[i], scale, addend, to);
                            } else {
                                store_wide(lanes, groups[i], scale, addend, to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Stores a group of codes below 128 as `scale · code + addend`.
///
/// # Safety
/// Two pairs of inputs are writable at `to`.
#[inline(always)]
unsafe fn store_narrow<L: Lanes>(
    lanes: L,
    codes: L::Codes,
    scale: L::Floats,
    addend: L::Floats,
    to: *mut u8,
) {
    // The numbers come 128 too high. Taking them down again costs the addend a rounding of 2^-17 of a step.
    let lowered = lanes.mul_add(scale, lanes.splat(-128.0), addend);
    let (scales, addends) = (lanes.doubled(scale), lanes.doubled(lowered));
    // No closures: they would be compiled without the instruction set.
    let pairs = lanes.raised_pairs_of_codes(codes);
    for i in 0..2 {
        let mut weights = addends;
        for half in 0..2 {
            weights[half] = lanes.mul_add(pairs[i][half], scales[half], addends[half]);
        }
        // SAFETY: the caller's promise.
        unsafe { lanes.store_bf16(weights, to.add(i * PAIR_BYTES).cast()) };
    }
}

/// The same for any codes.
///
/// # Safety
/// As [`store_narrow`].
#[inline(always)]
unsafe fn store_wide<L: Lanes>(lanes: L, codes: L::Codes, scale: L::Floats, addend: L::Floats, to: *mut u8) {
    let codes = lanes.floats_of_codes(codes);
    let mut weights = [addend; 4];
    for i in 0..4 {
        weights[i] = lanes.mul_add(codes[i], scale, addend);
    }
    // SAFETY: the caller's promise.
    unsafe {
        lanes.store_bf16_pairs([weights[0], weights[1]], to.cast());
        lanes.store_bf16_pairs([weights[2], weights[3]], to.add(PAIR_BYTES).cast());
    }
}

/// Steps `first..first + steps` of a panel that is in bf16 already; inputs beyond the last are zero.
pub(super) struct UnpackBf16<'a> {
    pub(super) panel: &'a [u8],
    pub(super) inputs: usize,
    pub(super) first: usize,
    pub(super) steps: usize,
    /// [`WEIGHT_TILE_BYTES`] for each step.
    pub(super) to: &'a mut [MaybeUninit<u8>],
}

impl Kernel for UnpackBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        assert!(self.to.len() >= self.steps * WEIGHT_TILE_BYTES);
        assert!(self.panel.len() >= self.inputs * Self::INPUT_BYTES);
        for pair in 0..self.steps * STEP_INPUTS / 2 {
            let k = self.first * STEP_INPUTS + 2 * pair;
            // SAFETY: the pair is inside `to`.
            unsafe {
                let to = self.to.as_mut_ptr().add(pair * PAIR_BYTES).cast();
                lanes.store_bf16_pairs([self.input(lanes, k), self.input(lanes, k + 1)], to);
            }
        }
    }
}

impl UnpackBf16<'_> {
    const INPUT_BYTES: usize = 2 * LANES;

    /// Input `k` of the panel's outputs.
    ///
    /// # Safety
    /// The panel has [`Self::inputs`] inputs.
    #[inline(always)]
    unsafe fn input<L: Lanes>(&self, lanes: L, k: usize) -> L::Floats {
        if k >= self.inputs {
            return lanes.splat(0.0);
        }
        // SAFETY: the caller's promise.
        unsafe { lanes.load_bf16(self.panel.as_ptr().add(k * Self::INPUT_BYTES)) }
    }
}
