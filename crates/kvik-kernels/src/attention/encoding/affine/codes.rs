//! Products with codes, which are never decoded.
//!
//! `min + code · scale` is linear in the code. So what multiplies the numbers of a series, a query or the weights of softmax,
//! takes the series' scale beforehand, and what is left to multiply are the codes themselves, small integers that bf16 has
//! exactly: `Σ x · (min + code · scale) = Σ (x · scale) · code + Σ x · min`, the last of which is one number a group. Against
//! decoding a tile first this saves a table for every few series, and the way of all its numbers through the first-level cache;
//! and `x · scale` is rounded to bf16 instead of every number.
//!
//! Codes become bf16 by one look-up. It reads the lowest five bits of a word, of which a code has fewer: the table repeats itself,
//! so that the codes above need no mask.

use std::arch::x86_64::*;

use super::{
    Affine,
    lines::{CODES, LANES, LINE, Lines},
};
use crate::attention::PlaneKind;

/// Vectors of lanes that are multiplied together: all tokens of a tile's keys, 64 dims of its values.
const VECTORS: usize = 4;

/// Pairs of series between two looks at what is loaded.
const PAIRS: usize = 8;

/// Most pairs of series: heads of 256.
const MOST_PAIRS: usize = 128;

/// A plane in codes that can be multiplied with as it is.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    lines: Lines,
    block: &'a [u8],
}

impl<'a> Codes<'a> {
    /// The codes of a full plane, if their shape allows it.
    pub(super) fn new(codec: Affine, plane: PlaneKind, dim: usize, block: &'a [u8]) -> Option<Self> {
        let lines = Lines::new(codec, plane, dim);
        let whole_loads = (PAIRS * lines.width * LINE * lines.bits).is_multiple_of(8 * CODES);
        let fits = lines.bits < 8
            && lines.pairs.is_multiple_of(PAIRS)
            && lines.pairs <= MOST_PAIRS
            && lines.blocks.is_multiple_of(VECTORS)
            && block.len() >= lines.bytes();
        (whole_loads && fits).then_some(Self { lines, block })
    }

    /// Pairs of series.
    pub(in crate::attention) fn pairs(&self) -> usize {
        self.lines.pairs
    }

    /// Lanes of each: tokens of keys, dims of values.
    pub(in crate::attention) fn lanes(&self) -> usize {
        self.lines.blocks * LANES
    }

    /// Calls of `between` in one of [`Self::products`].
    pub(in crate::attention) fn between(&self) -> usize {
        self.lines.pairs / PAIRS
    }

    /// Products of `R` rows with vectors `first..first + 4` of lanes; `between` is called once for every eight pairs of series.
    ///
    /// # Safety
    /// The processor has the features below; `rows` point to a pair of bf16 numbers for each pair of series; `first` is a
    /// multiple of four below the number of [`Self::lanes`] over 16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    pub(in crate::attention) unsafe fn products<const R: usize>(
        &self,
        rows: [*const i32; R],
        first: usize,
        between: &mut impl FnMut(),
    ) -> [[__m512; VECTORS]; R] {
        // SAFETY: the caller's promise; `new` lets no other shape pass.
        unsafe {
            match (self.lines.bits, self.lines.width) {
                (1, 2) => self.products_of::<1, 2, 2, R>(rows, first, between),
                (1, 4) => self.products_of::<1, 1, 4, R>(rows, first, between),
                (2, 1) => self.products_of::<2, 4, 1, R>(rows, first, between),
                (2, 2) => self.products_of::<2, 2, 2, R>(rows, first, between),
                (2, 4) => self.products_of::<2, 1, 4, R>(rows, first, between),
                (4, 1) => self.products_of::<4, 4, 1, R>(rows, first, between),
                (4, 2) => self.products_of::<4, 2, 2, R>(rows, first, between),
                (4, 4) => self.products_of::<4, 1, 4, R>(rows, first, between),
                _ => unreachable!("codes of other shapes are decoded"),
            }
        }
    }

    /// The same for `G` groups of `W` vectors, four in all, of codes of `BITS` bits.
    ///
    /// # Safety
    /// As [`Self::products`]; the constants are those of the lines.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline(never)]
    unsafe fn products_of<const BITS: u32, const G: usize, const W: usize, const R: usize>(
        &self,
        rows: [*const i32; R],
        first: usize,
        between: &mut impl FnMut(),
    ) -> [[__m512; VECTORS]; R] {
        const { assert!(G * W == VECTORS) };
        let lines = &self.lines;
        let group = first / W;
        // Rows times scales, `[row][group][pair]`; only what is written is read.
        let mut scaled = [const { [const { ScaledRow::uninit() }; G] }; R];
        // SAFETY: the ranges are padded to whole vectors, the rows have as many pairs as the lines, a multiple of eight.
        let offsets = unsafe { scale::<G, R>(lines, self.block, rows, group, &mut scaled) };

        let table = codes_in_bf16(BITS);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
        let mut codes = [self.block.as_ptr(); G];
        for g in 0..G {
            let start = lines.codes_at() + lines.first_line(group + g) * LINE * BITS as usize / 8;
            codes[g] = self.block[start..].as_ptr();
        }
        let mut loaded = [_mm512_setzero_si512(); G];
        for eight in 0..lines.pairs / PAIRS {
            between();
            for pair in 0..PAIRS {
                for g in 0..G {
                    for w in 0..W {
                        // SAFETY: eight pairs of a group have their codes in whole loads, which the block holds.
                        unsafe {
                            if (pair * W + w).is_multiple_of(16 / BITS as usize) {
                                loaded[g] = _mm512_loadu_si512(codes[g].cast());
                                codes[g] = codes[g].add(CODES);
                            }
                        }
                        let line = _mm512_permutexvar_epi16(loaded[g], table);
                        loaded[g] = _mm512_srli_epi16::<BITS>(loaded[g]);
                        for r in 0..R {
                            // SAFETY: all pairs of the row were written.
                            let x = unsafe { scaled[r][g].pair(eight * PAIRS + pair) };
                            let sum = &mut sums[r][g * W + w];
                            *sum = _mm512_dpbf16_ps(*sum, bf16(line), bf16(_mm512_set1_epi32(x)));
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for g in 0..G {
                for w in 0..W {
                    let sum = &mut sums[r][g * W + w];
                    *sum = _mm512_add_ps(*sum, _mm512_set1_ps(offsets[r][g]));
                }
            }
        }
        sums
    }
}

/// A row times the scales of a group, in pairs of bf16.
#[repr(C, align(64))]
struct ScaledRow([std::mem::MaybeUninit<i32>; MOST_PAIRS]);

impl ScaledRow {
    const fn uninit() -> Self {
        Self([const { std::mem::MaybeUninit::uninit() }; MOST_PAIRS])
    }

    /// # Safety
    /// The pair was written, and is one of [`MOST_PAIRS`].
    #[inline(always)]
    unsafe fn pair(&self, pair: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.get_unchecked(pair).assume_init() }
    }
}

/// Multiplies rows with the scales of groups `group..group + G`, and gives the products with their smallest numbers, `[row][group]`.
///
/// # Safety
/// The processor has the features; `rows` have the pairs of `lines`, which come in eights and are at most [`MOST_PAIRS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
#[inline]
unsafe fn scale<const G: usize, const R: usize>(
    lines: &Lines,
    block: &[u8],
    rows: [*const i32; R],
    group: usize,
    scaled: &mut [[ScaledRow; G]; R],
) -> [[f32; G]; R] {
    let steps = _mm512_set1_ps(1.0 / ((1u32 << lines.bits) - 1) as f32);
    let mut offsets = [[_mm512_setzero_ps(); G]; R];
    let mut ranges = [block.as_ptr(); G];
    for g in 0..G {
        ranges[g] = block[lines.range_at((group + g) * lines.width * LANES, 0)..].as_ptr();
    }
    for eight in 0..lines.pairs / PAIRS {
        let mut x = [_mm512_setzero_ps(); R];
        for r in 0..R {
            // SAFETY: a row has eight pairs from here on.
            let pairs = unsafe { _mm256_loadu_si256(rows[r].add(eight * PAIRS).cast()) };
            x[r] = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(pairs)));
        }
        for g in 0..G {
            // SAFETY: each group has a range for every series.
            let ranges = unsafe { _mm512_loadu_si512(ranges[g].add(eight * 2 * PAIRS * 4).cast()) };
            let min = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(ranges));
            let max = _mm512_castsi512_ps(_mm512_and_si512(ranges, _mm512_set1_epi32(0xffff_0000u32 as i32)));
            let scale = _mm512_mul_ps(_mm512_sub_ps(max, min), steps);
            for r in 0..R {
                offsets[r][g] = _mm512_fmadd_ps(x[r], min, offsets[r][g]);
                let rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(x[r], scale));
                // SAFETY: there is space for [`MOST_PAIRS`] pairs; both types are 256 bits of plain numbers.
                unsafe {
                    let to = scaled[r][g].0.as_mut_ptr().add(eight * PAIRS);
                    _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
                }
            }
        }
    }
    let mut sums = [[0.0; G]; R];
    for r in 0..R {
        for g in 0..G {
            sums[r][g] = _mm512_reduce_add_ps(offsets[r][g]);
        }
    }
    sums
}

/// What each word stands for whose lowest bits are a code of `bits`, in bf16.
#[target_feature(enable = "avx512f")]
#[inline]
fn codes_in_bf16(bits: u32) -> __m512i {
    const fn table(bits: u32) -> [u16; LINE] {
        let (mut table, mut word) = ([0; LINE], 0);
        while word < LINE {
            // Codes below 16 have their digits in the upper half of an f32.
            table[word] = (((word % (1 << bits)) as f32).to_bits() >> 16) as u16;
            word += 1;
        }
        table
    }
    const TABLES: [[u16; LINE]; 3] = [table(1), table(2), table(4)];
    // SAFETY: a table has the numbers of a vector.
    unsafe { _mm512_loadu_si512(TABLES[bits.trailing_zeros() as usize].as_ptr().cast()) }
}

#[inline(always)]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits of plain numbers.
    unsafe { std::mem::transmute(bits) }
}
