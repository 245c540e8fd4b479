//! The packed layout of quantised weights: panels of 16 output features, one feature per lane.
//!
//! A panel holds 16 rows of the matrix and is read front to back once for each product. It is a row of *spans*; a
//! span is a header with scales, then the codes of a few blocks of 32 inputs. Every part is a multiple of 64 bytes, so
//! that all loads are aligned.
//!
//! | formats | blocks per span | header: 16 numbers each |
//! |---|---|---|
//! | Q4_0, Q5_0, Q8_0 | 2 | `f16` scale of the first block, of the second |
//! | Q4_1, Q5_1 | 1 | `f16` scale, `f16` minimum |
//! | Q4_K, Q5_K | 8 | `f16` scale, `f16` minimum (negated); per block `u8` scale factor, `u8` minimum factor |
//! | Q6_K | 8 | `f16` scale; per block two `i8` scale factors, one for each half of it; 32 bytes unused |
//!
//! The two-level scales of the K formats stay as they are in the file: smaller than one `f16` product for each block,
//! exact, and safe from over- and underflow; a kernel pays one conversion and one multiplication per block for it.
//!
//! The codes of a block are 8 groups of 4 inputs; a group is 64 codes, those of row `r` at `4r..4r + 4`: the shape
//! that the dot-product instructions multiply with 4 activations for all rows. 8-bit codes are 8 × 64 bytes. Smaller
//! codes are 4 × 64 bytes of nibbles, the low ones a group and the high ones the next; then, for each further bit, a
//! plane of 8 × 64 bits.

use std::marker::PhantomData;

use super::{
    lanes::{LANES, Lanes},
    prefetch,
};
use crate::quant::{
    TensorType,
    block_format::{BLOCK, BlockFormat, Scales, with_block_format},
};

/// Bytes of 16 half-precision numbers.
pub(super) const HALVES: usize = 2 * LANES;
/// Codes of a group: 4 inputs of 16 rows.
pub(super) const GROUP_CODES: usize = 4 * LANES;
/// Pairs of groups in a block.
pub(super) const PAIRS: usize = BLOCK / 8;

/// Where things are in a panel of one format.
#[derive(Clone, Copy)]
pub(super) struct SpanLayout {
    /// Blocks in a span; the last span of a panel may have fewer.
    pub(super) blocks: usize,
    /// Bytes of the header, in front of the codes.
    pub(super) header_bytes: usize,
    /// Bytes of one block's codes.
    pub(super) code_bytes: usize,
}

impl SpanLayout {
    pub(super) const fn of<F: BlockFormat>() -> Self {
        let (blocks, header_bytes) = match F::SCALES {
            Scales::Single => (2, 2 * HALVES),
            Scales::WithMin => (1, 2 * HALVES),
            Scales::NestedWithMin | Scales::NestedHalves => (8, 320),
        };
        Self { blocks, header_bytes, code_bytes: F::BITS * BLOCK * LANES / 8 }
    }

    /// Start of the header and of the codes of block `block` in its panel.
    pub(super) const fn locate(self, block: usize) -> (usize, usize) {
        let header = block / self.blocks * self.bytes();
        (header, header + self.header_bytes + block % self.blocks * self.code_bytes)
    }

    /// Bytes of a whole span.
    pub(super) const fn bytes(self) -> usize {
        self.header_bytes + self.blocks * self.code_bytes
    }

    /// Bytes of a panel with `blocks` blocks.
    fn panel_bytes(self, blocks: usize) -> Option<usize> {
        let headers = blocks.div_ceil(self.blocks).checked_mul(self.header_bytes)?;
        headers.checked_add(blocks.checked_mul(self.code_bytes)?)
    }
}

/// Bytes of a panel of `in_features` columns, or `None` on overflow or if they are no whole blocks.
pub(super) fn panel_bytes(ty: TensorType, in_features: usize) -> Option<usize> {
    if !in_features.is_multiple_of(ty.block_len()) {
        return None;
    }
    with_block_format!(
        ty,
        F => SpanLayout::of::<F>().panel_bytes(in_features / BLOCK),
        _ => in_features.checked_mul(LANES * ty.block_bytes())?.checked_next_multiple_of(64)
    )
}

/// Start of the 16 half-precision scales of a span's block in the header.
pub(super) const fn scales_at(scales: Scales, block_in_span: usize) -> usize {
    match scales {
        Scales::Single => HALVES * block_in_span,
        _ => 0,
    }
}

/// Start of the 16 half-precision minima in the header of formats that have them.
pub(super) const MINIMA_AT: usize = HALVES;

/// Start of the factors of a span's block in the header of formats with nested scales: 16 bytes of factors of the
/// scale, then 16 of factors of the minimum or of the scale of the second half.
pub(super) const fn factors_at(scales: Scales, block_in_span: usize) -> usize {
    let first = if scales.has_min() { 2 * HALVES } else { HALVES };
    first + 2 * LANES * block_in_span
}

/// The header and the codes of block `block` of a panel of format `F`.
///
/// The same block of the panel that is `ahead` panels further comes into the cache meanwhile: the one that this thread most likely
/// takes next.
#[inline(always)]
pub(super) fn block_of<L: Lanes, F: BlockFormat>(
    lanes: L,
    panel: &[u8],
    block: usize,
    ahead: usize,
) -> (&[u8], &[u8]) {
    let span = SpanLayout::of::<F>();
    let (header_at, codes_at) = span.locate(block);
    let next = panel.as_ptr().wrapping_add(ahead * panel.len() + codes_at);
    prefetch(lanes, next, span.bytes().div_ceil(span.blocks));
    (&panel[header_at..header_at + span.header_bytes], &panel[codes_at..codes_at + span.code_bytes])
}

/// What an integer kernel needs to know about the weights it reads.
pub(super) trait PanelFormat {
    const SPAN: SpanLayout;
    /// Scales for each block and row: 2 if its halves have their own.
    const SCALES_PER_BLOCK: usize;
    /// Whether an element is `scale · code + min`.
    const HAS_MIN: bool;
    /// Codes reach beyond 63.
    const WIDE: bool;
    /// The code of zero in formats without minimum: 2 to the power of this.
    const ZERO_POINT_LOG2: u32;
    /// The panels come from memory rather than from the first-level cache.
    const STREAMED: bool;

    /// Groups `2·pair` and `2·pair + 1` of a block.
    ///
    /// # Safety
    /// `codes` points at the codes of a block of this format.
    unsafe fn codes<L: Lanes>(lanes: L, codes: *const u8, pair: usize) -> [L::Codes; 2];

    /// The scales of a block, or of half of it.
    ///
    /// # Safety
    /// `header` points at a header of this format, whose span has more than `block_in_span` blocks.
    unsafe fn scale<L: Lanes>(lanes: L, header: *const u8, block_in_span: usize, half: usize) -> L::Floats;

    /// The addends of a block, in formats that have them.
    ///
    /// # Safety
    /// As for `scale`.
    unsafe fn min<L: Lanes>(lanes: L, header: *const u8, block_in_span: usize) -> L::Floats;
}

/// Weights as they are stored.
pub(super) struct Packed<F>(PhantomData<F>);

impl<F: BlockFormat> PanelFormat for Packed<F> {
    const SPAN: SpanLayout = SpanLayout::of::<F>();
    const SCALES_PER_BLOCK: usize = if matches!(F::SCALES, Scales::NestedHalves) { 2 } else { 1 };
    const HAS_MIN: bool = F::SCALES.has_min();
    const WIDE: bool = F::BITS == 8;
    const ZERO_POINT_LOG2: u32 = if F::SCALES.has_min() { 0 } else { F::ZERO_POINT.ilog2() };
    const STREAMED: bool = true;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(lanes: L, codes: *const u8, pair: usize) -> [L::Codes; 2] {
        // SAFETY: all reads are inside the block's codes, whose layout is this format's.
        unsafe {
            if F::BITS == 8 {
                let group = codes.add(2 * GROUP_CODES * pair);
                return [lanes.load_codes(group), lanes.load_codes(group.add(GROUP_CODES))];
            }
            let mut groups = lanes.nibbles(lanes.load_codes(codes.add(GROUP_CODES * pair)));
            let mut plane = codes.add(GROUP_CODES * PAIRS).cast::<u64>();
            let mut bit = 4;
            while bit < F::BITS {
                for i in 0..2 {
                    let mask = u64::from_le(plane.add(2 * pair + i).read_unaligned());
                    groups[i] = lanes.add_where(mask, 1 << bit, groups[i]);
                }
                plane = plane.add(2 * PAIRS);
                bit += 1;
            }
            groups
        }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(lanes: L, header: *const u8, block_in_span: usize, half: usize) -> L::Floats {
        // SAFETY: all reads are inside the header.
        unsafe {
            let scale = lanes.load_f16(header.add(scales_at(F::SCALES, block_in_span)));
            let factors = header.add(factors_at(F::SCALES, block_in_span) + LANES * half);
            match F::SCALES {
                Scales::Single | Scales::WithMin => scale,
                Scales::NestedWithMin => lanes.mul(scale, lanes.load_u8(factors)),
                Scales::NestedHalves => lanes.mul(scale, lanes.load_i8(factors)),
            }
        }
    }

    #[inline(always)]
    unsafe fn min<L: Lanes>(lanes: L, header: *const u8, block_in_span: usize) -> L::Floats {
        // SAFETY: all reads are inside the header.
        unsafe {
            let min = lanes.load_f16(header.add(MINIMA_AT));
            match F::SCALES {
                Scales::NestedWithMin => {
                    let factors = header.add(factors_at(F::SCALES, block_in_span) + LANES);
                    lanes.mul(min, lanes.load_u8(factors))
                }
                _ => min,
            }
        }
    }
}

/// Weights taken apart for many rows of activations: one byte for each code and `f32` scales, so that the format's own
/// work is done once for all rows. Formats without a minimum get the zero point 128.
pub(super) struct Unpacked<const SCALES_PER_BLOCK: usize, const HAS_MIN: bool>;

impl<const SCALES_PER_BLOCK: usize, const HAS_MIN: bool> PanelFormat for Unpacked<SCALES_PER_BLOCK, HAS_MIN> {
    const SPAN: SpanLayout = SpanLayout {
        blocks: 1,
        header_bytes: 4 * LANES * (SCALES_PER_BLOCK + HAS_MIN as usize),
        code_bytes: BLOCK * LANES,
    };
    const SCALES_PER_BLOCK: usize = SCALES_PER_BLOCK;
    const HAS_MIN: bool = HAS_MIN;
    const WIDE: bool = !HAS_MIN;
    const ZERO_POINT_LOG2: u32 = 7;
    const STREAMED: bool = false;

    #[inline(always)]
    unsafe fn codes<L: Lanes>(lanes: L, codes: *const u8, pair: usize) -> [L::Codes; 2] {
        // SAFETY: both groups are inside the block's codes.
        unsafe {
            let group = codes.add(2 * GROUP_CODES * pair);
            [lanes.load_codes(group), lanes.load_codes(group.add(GROUP_CODES))]
        }
    }

    #[inline(always)]
    unsafe fn scale<L: Lanes>(lanes: L, header: *const u8, _block_in_span: usize, half: usize) -> L::Floats {
        // SAFETY: the header begins with the scales.
        unsafe { lanes.load(header.cast::<f32>().add(LANES * half)) }
    }

    #[inline(always)]
    unsafe fn min<L: Lanes>(lanes: L, header: *const u8, _block_in_span: usize) -> L::Floats {
        // SAFETY: the minima follow the scales.
        unsafe { lanes.load(header.cast::<f32>().add(LANES * SCALES_PER_BLOCK)) }
    }
}
