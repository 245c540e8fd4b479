//! The inner loops for quantised weights: integer products of 32 inputs, scaled into `f32` sums.
//!
//! For every block, in ascending order, a sum takes exactly these roundings, whatever the tile:
//! `sum ← fma(float(128 · Σ codes · high + Σ codes · low), scale_w · scale_a, sum)` for the block (or for each half of it), then, with
//! minima, `sum ← fma(min, scaled_sum_a, sum)`. The integer part is exact. That is why a row gives the same bits alone
//! and in any batch.

use std::{marker::PhantomData, mem::MaybeUninit};

use super::{
    PREFETCH_BYTES,
    activations::QuantizedBlock,
    lanes::{Kernel, LANES, Lanes},
    panel::{GROUP_CODES, PAIRS, Packed, PanelFormat, block_of},
    prefetch,
};
use crate::quant::block_format::{BLOCK, BlockFormat};

/// Adds the product of `R` activation rows with `P` panels, over `blocks` blocks, to `sums`.
pub(super) struct IntegerTile<'a, F, const P: usize, const R: usize> {
    /// Where each panel's first block is: the start of a span, with `blocks` blocks behind it.
    pub(super) panels: [*const u8; P],
    /// From the first block of the first row on.
    pub(super) activations: &'a [QuantizedBlock],
    /// Blocks from one row to the next.
    pub(super) row_blocks: usize,
    pub(super) blocks: usize,
    /// `[R][P][16]`.
    pub(super) sums: &'a mut [[[f32; LANES]; P]],
    pub(super) format: PhantomData<F>,
}

impl<F: PanelFormat, const P: usize, const R: usize> Kernel for IntegerTile<'_, F, P, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        assert!(self.sums.len() == R && self.activations.len() >= (R - 1) * self.row_blocks + self.blocks);
        let rows = self.activations.as_ptr();
        let mut headers = self.panels;
        // SAFETY: `panels` point at whole panels of format `F` with at least `blocks` blocks, of which spans and blocks
        // are visited in their order; the activations' length was checked above, and `r < R`, `block < blocks`.
        unsafe {
            let mut sums = [[lanes.splat(0.0); P]; R];
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = lanes.load(self.sums[r][p].as_ptr());
                }
            }
            let mut first = 0;
            while first < self.blocks {
                let span_blocks = F::SPAN.blocks.min(self.blocks - first);
                for in_span in 0..span_blocks {
                    if F::STREAMED {
                        for header in headers {
                            let share = F::SPAN.bytes().div_ceil(F::SPAN.blocks);
                            prefetch(lanes, header.wrapping_add(PREFETCH_BYTES + in_span * share), share);
                        }
                    }
                    add_block::<L, F, P, R>(
                        lanes,
                        headers,
                        in_span,
                        rows.add(first + in_span),
                        self.row_blocks,
                        &mut sums,
                    );
                }
                first += span_blocks;
                for header in &mut headers {
                    *header = header.wrapping_add(F::SPAN.bytes());
                }
            }
            for r in 0..R {
                for p in 0..P {
                    lanes.store(sums[r][p], self.sums[r][p].as_mut_ptr());
                }
            }
        }
    }
}

/// # Safety
/// `headers` point at spans with more than `in_span` blocks; `activations` and the pointers `row_blocks` blocks apart
/// from it, `R` of them, point at a block.
#[inline(always)]
unsafe fn add_block<L: Lanes, F: PanelFormat, const P: usize, const R: usize>(
    lanes: L,
    headers: [*const u8; P],
    in_span: usize,
    activations: *const QuantizedBlock,
    row_blocks: usize,
    sums: &mut [[L::Floats; P]; R],
) {
    // SAFETY: the caller's promise; everything read lies inside the named blocks.
    unsafe {
        for half in 0..F::SCALES_PER_BLOCK {
            // Of the high and the low plane of the activations: the codes are decoded once for both.
            let mut high = [[lanes.splat_int(0); P]; R];
            let mut low = [[lanes.splat_int(0); P]; R];
            let codes_are_signed = F::WIDE && L::WIDE_CODES_ARE_SIGNED;
            if !F::HAS_MIN && !codes_are_signed {
                for r in 0..R {
                    let block = activations.add(r * row_blocks);
                    let term = match (F::SCALES_PER_BLOCK, half) {
                        (1, _) => (*block).zero_point_term,
                        (_, 0) => (*block).first_half_term,
                        _ => (*block).zero_point_term - (*block).first_half_term,
                    };
                    low[r] = [lanes.splat_int(term >> (7 - F::ZERO_POINT_LOG2)); P];
                }
            }
            let pairs = PAIRS / F::SCALES_PER_BLOCK;
            for pair in half * pairs..(half + 1) * pairs {
                let mut codes = [[lanes.load_codes(headers[0]); 2]; P];
                for p in 0..P {
                    let block = headers[p].add(F::SPAN.header_bytes + in_span * F::SPAN.code_bytes);
                    codes[p] = F::codes(lanes, block, pair);
                }
                for r in 0..R {
                    let block = activations.add(r * row_blocks);
                    let (of_high, of_low) = (
                        eight((&raw const (*block).high).cast(), pair),
                        eight((&raw const (*block).low).cast(), pair),
                    );
                    for p in 0..P {
                        high[r][p] = lanes.dot(high[r][p], codes[p], of_high, F::WIDE);
                        low[r][p] = lanes.dot(low[r][p], codes[p], of_low, F::WIDE);
                    }
                }
            }
            for p in 0..P {
                let scale = F::scale(lanes, headers[p], in_span, half);
                for r in 0..R {
                    let scale_a = lanes.splat((*activations.add(r * row_blocks)).scale);
                    let product = lanes.to_floats(lanes.add_128_times(low[r][p], high[r][p]));
                    sums[r][p] = lanes.mul_add(product, lanes.mul(scale, scale_a), sums[r][p]);
                }
            }
        }
        if F::HAS_MIN {
            for p in 0..P {
                let min = F::min(lanes, headers[p], in_span);
                for r in 0..R {
                    let scaled_sum = lanes.splat((*activations.add(r * row_blocks)).scaled_sum);
                    sums[r][p] = lanes.mul_add(min, scaled_sum, sums[r][p]);
                }
            }
        }
    }
}

/// Eight activation codes of a plane, as [`Lanes::dot`] takes them.
///
/// # Safety
/// `plane` points at 32 codes, and `pair` is below 4.
#[inline(always)]
unsafe fn eight(plane: *const i32, pair: usize) -> [i32; 2] {
    // SAFETY: the caller's promise.
    unsafe { [plane.add(2 * pair).read_unaligned(), plane.add(2 * pair + 1).read_unaligned()] }
}

/// Takes blocks `first..first + blocks` of a packed panel apart, for tiles that read them several times.
pub(super) struct Unpack<'a, F> {
    pub(super) panel: &'a [u8],
    /// Panels from here to the one that comes after it.
    pub(super) ahead: usize,
    pub(super) first: usize,
    pub(super) blocks: usize,
    /// [`unpacked_block_bytes`] for each block.
    pub(super) to: &'a mut [MaybeUninit<u8>],
    pub(super) format: PhantomData<F>,
}

/// Bytes of a block taken apart.
pub(super) const fn unpacked_block_bytes<U: PanelFormat>() -> usize {
    U::SPAN.header_bytes + U::SPAN.code_bytes
}

impl<F: BlockFormat> Kernel for Unpack<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let span = Packed::<F>::SPAN;
        let scales = Packed::<F>::SCALES_PER_BLOCK;
        let header_bytes = 4 * LANES * (scales + usize::from(F::SCALES.has_min()));
        let block_bytes = header_bytes + BLOCK * LANES;
        assert!(self.to.len() >= self.blocks * block_bytes);
        for index in 0..self.blocks {
            let block = self.first + index;
            let (header, codes) = block_of::<L, F>(lanes, self.panel, block, self.ahead);
            // SAFETY: the header and the codes are whole, and the block inside `to`.
            unsafe {
                let to = self.to.as_mut_ptr().add(index * block_bytes).cast::<u8>();
                let numbers = to.cast::<f32>();
                for half in 0..scales {
                    let scale = Packed::<F>::scale(lanes, header.as_ptr(), block % span.blocks, half);
                    lanes.store(scale, numbers.add(LANES * half));
                }
                if F::SCALES.has_min() {
                    let min = Packed::<F>::min(lanes, header.as_ptr(), block % span.blocks);
                    lanes.store(min, numbers.add(LANES * scales));
                }
                for pair in 0..PAIRS {
                    let groups = Packed::<F>::codes(lanes, codes.as_ptr(), pair);
                    for i in 0..2 {
                        let mut group = groups[i];
                        if !F::SCALES.has_min() && F::ZERO_POINT != 128 {
                            group = lanes.add_code(group, 128 - F::ZERO_POINT);
                        }
                        lanes.store_codes(group, to.add(header_bytes + GROUP_CODES * (2 * pair + i)));
                    }
                }
            }
        }
    }
}
