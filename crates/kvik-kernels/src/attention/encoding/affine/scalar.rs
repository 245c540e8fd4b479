//! Decoding in portable Rust: the reference, and what odd shapes fall back to.

use super::lines::{LANES, LINE, Lines};
use crate::attention::from_bf16;

/// Decodes the lines of the first `groups` groups and `pairs` pairs.
#[inline(always)]
pub(super) fn decode(lines: &Lines, groups: usize, pairs: usize, block: &[u8], out: &mut [u16]) {
    for group in 0..groups {
        decode_group(lines, group, pairs, block, out);
    }
}

/// The same, compiled for AVX2.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode_avx2(lines: &Lines, groups: usize, pairs: usize, block: &[u8], out: &mut [u16]) {
    decode(lines, groups, pairs, block, out);
}

/// Decodes the lines of one group and the first `pairs` pairs.
#[inline(always)]
pub(super) fn decode_group(lines: &Lines, group: usize, pairs: usize, block: &[u8], out: &mut [u16]) {
    let mask = (1u32 << lines.bits) - 1;
    let lane = group * lines.width * LANES;
    for pair in 0..pairs {
        let ranges = [2 * pair, 2 * pair + 1].map(|series| range(lines, lane, series, mask as f32, block));
        for index in 0..lines.width_of(group) {
            let (first, shift) = lines.code_at(lane + index * LANES, 2 * pair);
            let step = if lines.bits == 8 { 1 } else { 2 };
            let codes = block[first..].iter().step_by(step);
            let start = lines.decoded_at(group * lines.width + index, pair);
            for ((number, out), &byte) in out[start..start + LINE].iter_mut().enumerate().zip(codes) {
                let (min, scale) = ranges[number % 2];
                *out = rounded(min + (u32::from(byte) >> shift & mask) as f32 * scale);
            }
        }
    }
}

/// Smallest number and scale of a group.
#[inline(always)]
fn range(lines: &Lines, lane: usize, series: usize, largest: f32, block: &[u8]) -> (f32, f32) {
    let at = lines.range_at(lane, series);
    let [a, b, c, d] = [block[at], block[at + 1], block[at + 2], block[at + 3]];
    let (min, max) = (from_bf16(u16::from_le_bytes([a, b])), from_bf16(u16::from_le_bytes([c, d])));
    (min, (max - min) * (1.0 / largest))
}

/// Rounds a finite number to bf16 as AVX-512 does: to nearest, ties to even, numbers below the normal ones to zero.
#[inline(always)]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let normal = bits & 0x7f80_0000 != 0;
    let nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    (if normal { nearest } else { bits >> 16 & 0x8000 }) as u16
}
