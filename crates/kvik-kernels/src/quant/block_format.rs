//! How each quantised file format stores its codes and scales.
//!
//! All formats say the same thing in different bytes: 32 consecutive elements have unsigned codes of 4 to 8 bits, and
//! an element is `scale · (code − zero_point)` or `scale · code + min`. A [`BlockFormat`] takes one block of a file
//! apart into exactly these parts; decoding to `f32` and packing for the kernels are both written on top of it.
//! The byte layouts are those of the GGUF format.

use half::f16;

use super::TensorType;

/// Elements that share a scale in the simple formats, and the unit in which all formats are walked.
pub(crate) const BLOCK: usize = 32;

/// Which scales a format has, for each row of the matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// One half-precision scale for 32 elements.
    Single,
    /// One half-precision scale and minimum for 32 elements.
    WithMin,
    /// A half-precision scale and minimum for 256 elements; 6-bit factors of both for each 32.
    NestedWithMin,
    /// A half-precision scale for 256 elements; a signed 8-bit factor for each 16.
    NestedHalves,
}

impl Scales {
    /// Whether an element is `scale · code + min` rather than `scale · (code − zero_point)`.
    pub(crate) const fn has_min(self) -> bool {
        matches!(self, Self::WithMin | Self::NestedWithMin)
    }
}

/// One quantised file format. A `block` below is [`TensorType::block_bytes`] bytes; `sub` counts its runs of 32.
pub(crate) trait BlockFormat {
    const TYPE: TensorType;
    /// Bits of a code: 4, 5, 6 or 8.
    const BITS: usize;
    /// The code that stands for zero, in formats without a minimum; a power of two.
    const ZERO_POINT: u8;
    const SCALES: Scales;

    /// The 32 codes of run `sub`, one byte each, in element order (each `u64` little-endian).
    fn codes(block: &[u8], sub: usize) -> [u64; 4];

    /// The block's half-precision scale, as its bits.
    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 0)
    }

    /// The block's half-precision minimum, as its bits, with the sign that makes it an addend.
    fn min_bits(_block: &[u8]) -> u16 {
        0
    }

    /// The factor of the scale for elements `16·half..` of run `sub`.
    fn scale_factor(_block: &[u8], _sub: usize, _half: usize) -> i8 {
        1
    }

    /// The factor of the minimum for run `sub`.
    fn min_factor(_block: &[u8], _sub: usize) -> u8 {
        1
    }

    /// The scale of elements `16·half..` of run `sub`. Exact: a half times a factor of 8 bits fits an `f32`.
    fn scale(block: &[u8], sub: usize, half: usize) -> f32 {
        f16::from_bits(Self::scale_bits(block)).to_f32() * f32::from(Self::scale_factor(block, sub, half))
    }

    /// The addend of run `sub`; zero in formats without a minimum.
    fn min(block: &[u8], sub: usize) -> f32 {
        f16::from_bits(Self::min_bits(block)).to_f32() * f32::from(Self::min_factor(block, sub))
    }
}

/// Runs `$run` with the type `$F` being the [`BlockFormat`] of the quantised `$ty`, or `$otherwise` for the floats.
macro_rules! with_block_format {
    ($ty:expr, $F:ident => $run:expr, _ => $otherwise:expr) => {{
        use $crate::quant::{TensorType as Ty, block_format as formats};
        match $ty {
            Ty::Q4_0 => {
                type $F = formats::Q4_0;
                $run
            }
            Ty::Q4_1 => {
                type $F = formats::Q4_1;
                $run
            }
            Ty::Q5_0 => {
                type $F = formats::Q5_0;
                $run
            }
            Ty::Q5_1 => {
                type $F = formats::Q5_1;
                $run
            }
            Ty::Q8_0 => {
                type $F = formats::Q8_0;
                $run
            }
            Ty::Q4_K => {
                type $F = formats::Q4_K;
                $run
            }
            Ty::Q5_K => {
                type $F = formats::Q5_K;
                $run
            }
            Ty::Q6_K => {
                type $F = formats::Q6_K;
                $run
            }
            Ty::F32 | Ty::F16 | Ty::BF16 => $otherwise,
        }
    }};
}
pub(crate) use with_block_format;

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q4_0;

impl BlockFormat for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    const BITS: usize = 4;
    const ZERO_POINT: u8 = 8;
    const SCALES: Scales = Scales::Single;

    fn codes(block: &[u8], _sub: usize) -> [u64; 4] {
        split_nibbles(&block[2..18])
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q4_1;

impl BlockFormat for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    const BITS: usize = 4;
    const ZERO_POINT: u8 = 0;
    const SCALES: Scales = Scales::WithMin;

    fn codes(block: &[u8], _sub: usize) -> [u64; 4] {
        split_nibbles(&block[4..20])
    }

    fn min_bits(block: &[u8]) -> u16 {
        u16_at(block, 2)
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q5_0;

impl BlockFormat for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    const BITS: usize = 5;
    const ZERO_POINT: u8 = 16;
    const SCALES: Scales = Scales::Single;

    fn codes(block: &[u8], _sub: usize) -> [u64; 4] {
        with_fifth_bits(split_nibbles(&block[6..22]), &block[2..6])
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q5_1;

impl BlockFormat for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    const BITS: usize = 5;
    const ZERO_POINT: u8 = 0;
    const SCALES: Scales = Scales::WithMin;

    fn codes(block: &[u8], _sub: usize) -> [u64; 4] {
        with_fifth_bits(split_nibbles(&block[8..24]), &block[4..8])
    }

    fn min_bits(block: &[u8]) -> u16 {
        u16_at(block, 2)
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q8_0;

impl BlockFormat for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    const BITS: usize = 8;
    const ZERO_POINT: u8 = 128;
    const SCALES: Scales = Scales::Single;

    fn codes(block: &[u8], _sub: usize) -> [u64; 4] {
        // Two's complement to offset binary: flip the sign bit.
        std::array::from_fn(|i| u64_at(block, 2 + 8 * i) ^ repeat(0x80))
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q4_K;

impl BlockFormat for Q4_K {
    const TYPE: TensorType = TensorType::Q4_K;
    const BITS: usize = 4;
    const ZERO_POINT: u8 = 0;
    const SCALES: Scales = Scales::NestedWithMin;

    fn codes(block: &[u8], sub: usize) -> [u64; 4] {
        nibbles_of_pair(&block[16..144], sub)
    }

    fn min_bits(block: &[u8]) -> u16 {
        negated_half(u16_at(block, 2))
    }

    fn scale_factor(block: &[u8], sub: usize, _half: usize) -> i8 {
        six_bit_factors(&block[4..16], sub).0 as i8
    }

    fn min_factor(block: &[u8], sub: usize) -> u8 {
        six_bit_factors(&block[4..16], sub).1
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q5_K;

impl BlockFormat for Q5_K {
    const TYPE: TensorType = TensorType::Q5_K;
    const BITS: usize = 5;
    const ZERO_POINT: u8 = 0;
    const SCALES: Scales = Scales::NestedWithMin;

    fn codes(block: &[u8], sub: usize) -> [u64; 4] {
        let low = nibbles_of_pair(&block[48..176], sub);
        std::array::from_fn(|i| low[i] | (u64_at(block, 16 + 8 * i) >> sub & repeat(1)) << 4)
    }

    fn min_bits(block: &[u8]) -> u16 {
        negated_half(u16_at(block, 2))
    }

    fn scale_factor(block: &[u8], sub: usize, _half: usize) -> i8 {
        six_bit_factors(&block[4..16], sub).0 as i8
    }

    fn min_factor(block: &[u8], sub: usize) -> u8 {
        six_bit_factors(&block[4..16], sub).1
    }
}

#[allow(non_camel_case_types, reason = "the format's own name")]
pub(crate) struct Q6_K;

impl BlockFormat for Q6_K {
    const TYPE: TensorType = TensorType::Q6_K;
    const BITS: usize = 6;
    const ZERO_POINT: u8 = 32;
    const SCALES: Scales = Scales::NestedHalves;

    fn codes(block: &[u8], sub: usize) -> [u64; 4] {
        // 128 elements take 64 bytes of low nibbles and 32 bytes of high bit pairs. Runs 0 and 1 of them are the low
        // nibbles of the first and second 32 bytes, runs 2 and 3 the high nibbles; run r has bit pair r.
        let (outer, run) = (sub / 4, sub % 4);
        let low = 64 * outer + 32 * (run % 2);
        let high = 128 + 32 * outer;
        std::array::from_fn(|i| {
            let nibbles = u64_at(block, low + 8 * i) >> (4 * (run / 2)) & repeat(0x0f);
            let pairs = u64_at(block, high + 8 * i) >> (2 * run) & repeat(0x03);
            nibbles | pairs << 4
        })
    }

    fn scale_bits(block: &[u8]) -> u16 {
        u16_at(block, 208)
    }

    fn scale_factor(block: &[u8], sub: usize, half: usize) -> i8 {
        block[192 + 2 * sub + half] as i8
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn repeat(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

fn negated_half(bits: u16) -> u16 {
    bits ^ 0x8000
}

/// 16 bytes: elements 0..16 are the low nibbles, 16..32 the high ones.
fn split_nibbles(bytes: &[u8]) -> [u64; 4] {
    let (a, b) = (u64_at(bytes, 0), u64_at(bytes, 8));
    [a & repeat(0x0f), b & repeat(0x0f), a >> 4 & repeat(0x0f), b >> 4 & repeat(0x0f)]
}

/// Adds bit 4 to each of 32 codes, from one bit per element.
fn with_fifth_bits(low: [u64; 4], bits: &[u8]) -> [u64; 4] {
    std::array::from_fn(|i| {
        // Byte j of `picked` is nonzero exactly if bit j is set; adding 0x7f carries that into its top bit.
        let picked = repeat(bits[i]) & 0x8040_2010_0804_0201;
        low[i] | ((picked + repeat(0x7f)) & repeat(0x80)) >> 3
    })
}

/// Runs 2i and 2i + 1 are the low and high nibbles of the i-th 32 bytes.
fn nibbles_of_pair(bytes: &[u8], sub: usize) -> [u64; 4] {
    std::array::from_fn(|i| u64_at(bytes, 32 * (sub / 2) + 8 * i) >> (4 * (sub % 2)) & repeat(0x0f))
}

/// The 6-bit factors of scale and minimum for run `sub`, from 12 bytes: runs 0..4 have theirs in the low six bits of
/// bytes 0..8; runs 4..8 have low nibbles in bytes 8..12 and their upper bits on top of bytes 0..8.
fn six_bit_factors(bytes: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (bytes[sub] & 0x3f, bytes[sub + 4] & 0x3f)
    } else {
        let low = bytes[sub + 4];
        (low & 0x0f | bytes[sub - 4] >> 6 << 4, low >> 4 | bytes[sub] >> 6 << 4)
    }
}
