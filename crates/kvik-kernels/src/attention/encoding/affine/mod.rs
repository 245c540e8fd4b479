//! Affine codes: numbers in groups, each group as small integers between its smallest and its largest number.
//!
//! `code = round((x - min) / scale)` with `scale = (max - min) / (2^bits - 1)`, and back as `min + code · scale`, rounded to bf16.
//! Keys are grouped by channel, `group` tokens of one dim together; values by token, `group` dims of one token together
//! (KIVI, Liu et al., ICML 2024). Keys have a few dims with a large offset, which so get a scale of their own; and an error in a
//! value stays with its token.
//!
//! A group stores its smallest and largest number in bf16, in the 32 bits that a scale and a minimum in fp16 would take. Cached
//! rows are bf16, so both are exact whatever their size, where a minimum in fp16 would lose digits beyond 2048 and a scale would
//! overflow. A constant group comes back as it was; nothing that is encoded comes back infinite or as no number.
//!
//! # Layout
//! A block holds the ranges of all groups, `[group along the lanes][series]`, then the codes, in the order in which they are
//! decoded: see [`Lines`], which makes one thing of keys by channel and values by token. Prompts decode a tile once for their many
//! rows; a decoded token's few rows multiply with the codes themselves (`codes`, AVX-512).

use std::borrow::Cow;

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod codes;
mod lines;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(in crate::attention) use self::codes::Codes;
use self::lines::Lines;
use crate::{
    Isa,
    attention::{Codec, PlaneKind, TILE_TOKENS, from_bf16, to_bf16},
};

/// The codec; the module says what it does.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    bits: usize,
    group: usize,
    isa: Isa,
}

impl Affine {
    /// Numbers of bits that a code may have.
    pub const BITS: [usize; 4] = [1, 2, 4, 8];
    /// Numbers that a group may have.
    pub const GROUPS: [usize; 3] = [16, 32, 64];

    /// Codes of `bits` bits in groups of `group` numbers; the last group of a value is shorter if its dims do not fill it.
    ///
    /// # Panics
    /// If `bits` is not one of [`Self::BITS`], or `group` not one of [`Self::GROUPS`].
    pub fn new(bits: usize, group: usize) -> Self {
        assert!(Self::BITS.contains(&bits), "codes have 1, 2, 4 or 8 bits, not {bits}");
        assert!(Self::GROUPS.contains(&group), "groups have 16, 32 or 64 numbers, not {group}");
        Self { bits, group, isa: Isa::active() }
    }

    /// The codec that calls itself `name`, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let all = Self::BITS.iter().flat_map(|&bits| Self::GROUPS.map(|group| Self::new(bits, group)));
        all.into_iter().find(|codec| codec.name() == name)
    }

    /// The same codec, which decodes by the instructions of `isa`.
    pub fn on(self, isa: Isa) -> Self {
        Self { isa: isa.min(Isa::detect()), ..self }
    }

    /// A full plane in these codes, if kernels can multiply with them as they are.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::attention) fn codes(self, plane: PlaneKind, dim: usize, block: &[u8]) -> Option<Codes<'_>> {
        Codes::new(self, plane, dim, block)
    }

    /// The largest code.
    fn largest(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Encodes one group: numbers of `series`, the first in `lane`.
    fn encode_group(self, lines: &Lines, series: usize, lane: usize, numbers: &[f32], block: &mut [u8]) {
        let (min, max) = numbers
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)));
        let range = u32::from(to_bf16(min)) | u32::from(to_bf16(max)) << 16;
        let at = lines.range_at(lane, series);
        block[at..at + 4].copy_from_slice(&range.to_le_bytes());
        let scale = (max - min) * (1.0 / self.largest());
        for (index, &x) in numbers.iter().enumerate() {
            let code =
                if scale > 0.0 { ((x - min) / scale).round_ties_even().min(self.largest()) } else { 0.0 };
            let (byte, shift) = lines.code_at(lane + index, series);
            let mask = (self.largest() as u8) << shift;
            block[byte] = block[byte] & !mask | (code as u8) << shift;
        }
    }
}

/// A number as a group holds it: bf16, and small enough for the difference of two to be finite.
fn bounded(x: f32) -> f32 {
    /// 2¹²⁶.
    const MOST: f32 = 8.507_059e37;
    if x.is_nan() { 0.0 } else { from_bf16(to_bf16(x.clamp(-MOST, MOST))) }
}

impl Codec for Affine {
    fn name(&self) -> String {
        format!("affine(bits={},group={})", self.bits, self.group)
    }

    fn kind(&self) -> Cow<'static, str> {
        match self.bits {
            1 => "affine-1-bit".into(),
            bits => format!("affine-{bits}-bits").into(),
        }
    }

    fn block_bytes(&self, plane: PlaneKind, dim: usize) -> usize {
        Lines::new(*self, plane, dim).bytes()
    }

    fn group_rows(&self, plane: PlaneKind) -> usize {
        match plane {
            PlaneKind::Keys => self.group,
            PlaneKind::Values => 1,
        }
    }

    fn encode(&self, plane: PlaneKind, dim: usize, first: usize, rows: &[f32], block: &mut [u8]) {
        let lines = Lines::new(*self, plane, dim);
        match plane {
            PlaneKind::Keys => {
                assert!(first.is_multiple_of(self.group) && rows.len().is_multiple_of(dim * self.group));
                let mut channel = vec![0.0; self.group];
                for (index, rows) in rows.chunks_exact(dim * self.group).enumerate() {
                    for series in 0..dim {
                        for (number, row) in channel.iter_mut().zip(rows.chunks_exact(dim)) {
                            *number = bounded(row[series]);
                        }
                        self.encode_group(&lines, series, first + index * self.group, &channel, block);
                    }
                }
            }
            PlaneKind::Values => {
                let mut numbers = vec![0.0; dim];
                for (index, row) in rows.chunks_exact(dim).enumerate() {
                    for (number, &x) in numbers.iter_mut().zip(row) {
                        *number = bounded(x);
                    }
                    for (group, numbers) in numbers.chunks(self.group).enumerate() {
                        self.encode_group(&lines, first + index, group * self.group, numbers, block);
                    }
                }
            }
        }
    }

    fn affine(&self) -> Option<Affine> {
        Some(*self)
    }

    fn decode(&self, plane: PlaneKind, dim: usize, rows: usize, block: &[u8], out: &mut [u16]) {
        let lines = Lines::new(*self, plane, dim);
        assert!(rows <= TILE_TOKENS && block.len() >= lines.bytes());
        assert_eq!(out.len(), lines.numbers());
        let (groups, pairs) = match plane {
            PlaneKind::Keys => (rows.div_ceil(self.group), lines.pairs),
            PlaneKind::Values => (lines.groups(), rows.div_ceil(2)),
        };
        match self.isa {
            Isa::Scalar => scalar::decode(&lines, groups, pairs, block, out),
            // SAFETY: an `Isa` above Scalar only exists on a processor that has it.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { scalar::decode_avx2(&lines, groups, pairs, block, out) },
            // SAFETY: as above; block and output have the lengths that `lines` asks for.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe {
                avx512::decode(&lines, groups, pairs, block, out)
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::decode(&lines, groups, pairs, block, out),
        }
    }
}
