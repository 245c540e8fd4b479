//! Rows of a file into a panel, and a panel's row back into `f32`.

use half::{bf16, f16};

use super::{
    lanes::LANES,
    panel::{GROUP_CODES, HALVES, MINIMA_AT, PAIRS, SpanLayout, factors_at, scales_at},
};
use crate::quant::{
    TensorType,
    block_format::{BLOCK, BlockFormat, Scales, with_block_format},
};

/// Packs up to 16 consecutive rows of `row_bytes` bytes into the zeroed `panel`.
pub(super) fn pack_panel(ty: TensorType, rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    with_block_format!(ty, F => pack_blocks::<F>(rows, row_bytes, panel), _ => match ty.block_bytes() {
        4 => pack_elements::<4>(rows, row_bytes, panel),
        _ => pack_elements::<2>(rows, row_bytes, panel),
    });
}

/// Decodes row `lane` of `panel`: the same bits as [`crate::quant::dequantize`] gives for the row in the file.
pub(super) fn unpack_row(ty: TensorType, panel: &[u8], lane: usize, out: &mut [f32]) {
    with_block_format!(ty, F => unpack_blocks::<F>(panel, lane, out), _ => unpack_floats(ty, panel, lane, out));
}

fn pack_blocks<F: BlockFormat>(rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    let span = SpanLayout::of::<F>();
    let subs = F::TYPE.block_len() / BLOCK;
    for block in 0..row_bytes / F::TYPE.block_bytes() * subs {
        let (header_at, codes_at) = span.locate(block);
        let (header, codes) = panel[header_at..codes_at + span.code_bytes].split_at_mut(codes_at - header_at);
        let header = &mut header[..span.header_bytes];
        let mut planes = [[0u64; 2 * PAIRS]; 2];
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            let from = block / subs * F::TYPE.block_bytes();
            let stored = &row[from..from + F::TYPE.block_bytes()];
            pack_scales::<F>(stored, block % subs, header, block % span.blocks, lane);
            pack_codes::<F>(F::codes(stored, block % subs), codes, &mut planes, lane);
        }
        if F::BITS < 8 {
            let planes_at = GROUP_CODES * PAIRS;
            for (word, mask) in codes[planes_at..].chunks_exact_mut(8).zip(planes.as_flattened()) {
                word.copy_from_slice(&mask.to_le_bytes());
            }
        }
    }
}

#[inline]
fn pack_codes<F: BlockFormat>(
    stored: [u64; 4],
    codes: &mut [u8],
    planes: &mut [[u64; 2 * PAIRS]; 2],
    lane: usize,
) {
    for (pair, eight) in stored.into_iter().enumerate() {
        let (first, second) = (eight as u32, (eight >> 32) as u32);
        let mut put = |group: usize, word: u32| {
            let at = GROUP_CODES * group + 4 * lane;
            codes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        };
        if F::BITS == 8 {
            put(2 * pair, first);
            put(2 * pair + 1, second);
            continue;
        }
        put(pair, first & 0x0f0f_0f0f | (second & 0x0f0f_0f0f) << 4);
        for (plane, masks) in planes.iter_mut().enumerate().take(F::BITS - 4) {
            let bits = one_bit_of_each_byte(eight >> (4 + plane));
            masks[2 * pair] |= (bits & 0x0f) << (4 * lane);
            masks[2 * pair + 1] |= (bits >> 4) << (4 * lane);
        }
    }
}

/// The lowest bit of byte i becomes bit i.
fn one_bit_of_each_byte(bytes: u64) -> u64 {
    (bytes & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

#[inline]
fn pack_scales<F: BlockFormat>(
    stored: &[u8],
    sub: usize,
    header: &mut [u8],
    block_in_span: usize,
    lane: usize,
) {
    let mut put_half = |at: usize, bits: u16| {
        header[at + 2 * lane..at + 2 * lane + 2].copy_from_slice(&bits.to_le_bytes());
    };
    put_half(scales_at(F::SCALES, block_in_span), F::scale_bits(stored));
    if F::SCALES.has_min() {
        put_half(MINIMA_AT, F::min_bits(stored));
    }
    let factors = factors_at(F::SCALES, block_in_span) + lane;
    match F::SCALES {
        Scales::Single | Scales::WithMin => {}
        Scales::NestedWithMin => {
            header[factors] = F::scale_factor(stored, sub, 0) as u8;
            header[factors + LANES] = F::min_factor(stored, sub);
        }
        Scales::NestedHalves => {
            header[factors] = F::scale_factor(stored, sub, 0) as u8;
            header[factors + LANES] = F::scale_factor(stored, sub, 1) as u8;
        }
    }
}

/// Floating-point panels are `[in_features][16]` elements of `SIZE` bytes.
fn pack_elements<const SIZE: usize>(rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    // Some columns at a time, so that the strided writes stay in the first-level cache.
    const COLUMNS: usize = 64;
    let (panel, _) = panel.as_chunks_mut::<SIZE>();
    for first in (0..row_bytes / SIZE).step_by(COLUMNS) {
        for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
            for (k, element) in row.as_chunks::<SIZE>().0.iter().enumerate().skip(first).take(COLUMNS) {
                panel[LANES * k + lane] = *element;
            }
        }
    }
}

fn unpack_blocks<F: BlockFormat>(panel: &[u8], lane: usize, out: &mut [f32]) {
    let span = SpanLayout::of::<F>();
    for (block, elements) in out.chunks_exact_mut(BLOCK).enumerate() {
        let (header_at, codes_at) = span.locate(block);
        let header = &panel[header_at..header_at + span.header_bytes];
        let codes = &panel[codes_at..codes_at + span.code_bytes];
        let (scales, min) = unpack_scales::<F>(header, block % span.blocks, lane);
        for (i, element) in elements.iter_mut().enumerate() {
            let code = f32::from(code_at::<F>(codes, i, lane)) - f32::from(F::ZERO_POINT);
            *element = scales[i / (BLOCK / 2)] * code;
            if F::SCALES.has_min() {
                *element += min;
            }
        }
    }
}

fn code_at<F: BlockFormat>(codes: &[u8], input: usize, lane: usize) -> u8 {
    let (group, in_group) = (input / 4, 4 * lane + input % 4);
    if F::BITS == 8 {
        return codes[GROUP_CODES * group + in_group];
    }
    let mut code = codes[GROUP_CODES * (group / 2) + in_group] >> (4 * (group % 2)) & 0x0f;
    for bit in 4..F::BITS {
        let plane = GROUP_CODES * PAIRS + (bit - 4) * GROUP_CODES;
        let byte = codes[plane + 8 * group + in_group / 8];
        code |= (byte >> (in_group % 8) & 1) << bit;
    }
    code
}

fn unpack_scales<F: BlockFormat>(header: &[u8], block_in_span: usize, lane: usize) -> ([f32; 2], f32) {
    let half = |at: usize| f16::from_le_bytes([header[at + 2 * lane], header[at + 2 * lane + 1]]).to_f32();
    let scale = half(scales_at(F::SCALES, block_in_span));
    let factors = factors_at(F::SCALES, block_in_span) + lane;
    match F::SCALES {
        Scales::Single => ([scale; 2], 0.0),
        Scales::WithMin => ([scale; 2], half(MINIMA_AT)),
        Scales::NestedWithMin => {
            let min = half(MINIMA_AT) * f32::from(header[factors + LANES]);
            ([scale * f32::from(header[factors]); 2], min)
        }
        Scales::NestedHalves => {
            ([factors, factors + LANES].map(|at| scale * f32::from(header[at] as i8)), 0.0)
        }
    }
}

fn unpack_floats(ty: TensorType, panel: &[u8], lane: usize, out: &mut [f32]) {
    if ty == TensorType::F32 {
        let (panel, _) = panel.as_chunks::<4>();
        for (k, element) in out.iter_mut().enumerate() {
            *element = f32::from_le_bytes(panel[LANES * k + lane]);
        }
        return;
    }
    let (panel, _) = panel.as_chunks::<2>();
    for (k, element) in out.iter_mut().enumerate() {
        let bytes = panel[LANES * k + lane];
        *element = if ty == TensorType::F16 {
            f16::from_le_bytes(bytes).to_f32()
        } else {
            bf16::from_le_bytes(bytes).to_f32()
        };
    }
}

const _: () =
    assert!(HALVES == 32 && GROUP_CODES == 64, "the layouts in `panel` are written in these numbers");
