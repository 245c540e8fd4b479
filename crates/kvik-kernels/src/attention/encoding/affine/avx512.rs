//! Decoding with AVX-512: by table.
//!
//! The numbers that codes of up to 4 bits can stand for are few: a vector of 32 bf16 numbers holds all that the groups of some
//! series have (16 series at 1 bit, 8 at 2 bits, 2 at 4 bits), and one `vpermw` looks up a whole line. An index is a code with
//! the series above it; a line takes a shift, a bitwise operation, the look-up and a store. Codes of 8 bits are calculated.
//!
//! Eight pairs of series go together. Groups that do not come in eights, as odd head dims have them, are decoded by the
//! reference.

use std::arch::x86_64::*;

use super::{
    lines::{CODES, LINE, Lines},
    scalar,
};

/// Pairs of series that are decoded together.
const PAIRS: usize = 8;

/// See [`scalar::decode`]; of the pairs, whole eights are decoded.
///
/// # Safety
/// The processor has the features below; `block` and `out` have the bytes and numbers that `lines` asks for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn decode(lines: &Lines, groups: usize, pairs: usize, block: &[u8], out: &mut [u16]) {
    for group in 0..groups {
        let width = lines.width_of(group);
        let whole_loads = (PAIRS * width * LINE * lines.bits).is_multiple_of(8 * CODES);
        if !lines.pairs.is_multiple_of(PAIRS) || !whole_loads {
            scalar::decode_group(lines, group, pairs, block, out);
            continue;
        }
        let eights = pairs.div_ceil(PAIRS);
        // SAFETY: the contract is this function's; pairs come in whole eights, whose lines come in whole loads.
        unsafe {
            match (lines.bits, width) {
                (1, 2) => group_1::<2>(lines, group, eights, block, out),
                (1, 4) => group_1::<4>(lines, group, eights, block, out),
                (2, 1) => group_2::<1>(lines, group, eights, block, out),
                (2, 2) => group_2::<2>(lines, group, eights, block, out),
                (2, 4) => group_2::<4>(lines, group, eights, block, out),
                (4, 1) => group_4::<1>(lines, group, eights, block, out),
                (4, 2) => group_4::<2>(lines, group, eights, block, out),
                (4, 4) => group_4::<4>(lines, group, eights, block, out),
                (8, 1) => group_8::<1>(lines, group, eights, block, out),
                (8, 2) => group_8::<2>(lines, group, eights, block, out),
                (8, 4) => group_8::<4>(lines, group, eights, block, out),
                _ => scalar::decode_group(lines, group, pairs, block, out),
            }
        }
    }
}

/// Where a group's ranges, codes and decoded lines lie.
struct Group {
    ranges: *const u8,
    codes: *const u8,
    out: *mut u16,
}

impl Group {
    fn new(lines: &Lines, group: usize, block: &[u8], out: &mut [u16]) -> Self {
        let codes = lines.codes_at() + lines.first_line(group) * LINE * lines.bits / 8;
        Self {
            ranges: block[4 * group * lines.series()..].as_ptr(),
            codes: block[codes..].as_ptr(),
            out: out[lines.decoded_at(group * lines.width, 0)..].as_mut_ptr(),
        }
    }
}

/// Smallest numbers and scales of 16 groups, from their ranges.
#[target_feature(enable = "avx512f")]
#[inline]
fn minima_and_scales(ranges: __m512i, largest: f32) -> (__m512, __m512) {
    let min = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(ranges));
    let max = _mm512_castsi512_ps(_mm512_and_si512(ranges, _mm512_set1_epi32(0xffff_0000u32 as i32)));
    (min, _mm512_mul_ps(_mm512_sub_ps(max, min), _mm512_set1_ps(1.0 / largest)))
}

/// What `codes` stand for.
#[target_feature(enable = "avx512f")]
#[inline]
fn numbers(min: __m512, scale: __m512, codes: __m512) -> __m512 {
    _mm512_add_ps(min, _mm512_mul_ps(codes, scale))
}

/// `low` and `high` in bf16, one after the other.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of plain numbers.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// For a table whose entries come code by code, each for all of `series` series: where it has them series by series.
const fn series_by_series(series: usize) -> [u16; LINE] {
    let (mut from, mut at) = ([0; LINE], 0);
    while at < LINE {
        let codes = LINE / series;
        from[at] = (at % codes * series + at / codes) as u16;
        at += 1;
    }
    from
}

/// 16 codes, each `times` times, from `first` on.
const fn repeated(first: usize, times: usize) -> [f32; 16] {
    let (mut codes, mut at) = ([0.0; 16], 0);
    while at < 16 {
        codes[at] = (first + at / times) as f32;
        at += 1;
    }
    codes
}

/// Looks up and stores one line each of `PAIRS` pairs and `W` lines along the lanes. `codes` are loaded as they are used up.
///
/// # Safety
/// `codes` points to the codes of the lines, in whole loads; `out` to where the first line goes, the others in the strides of
/// `lines`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn look_up<const BITS: u32, const P: usize, const W: usize>(
    lines: &Lines,
    table: __m512i,
    first: usize,
    loaded: &mut __m512i,
    codes: &mut *const u8,
    out: *mut u16,
) {
    let fields = 16 / BITS as usize;
    let mask = _mm512_set1_epi16((1 << BITS) - 1);
    for pair in 0..P {
        let series = _mm512_set1_epi32(((2 * pair) << BITS | (2 * pair + 1) << (BITS + 16)) as i32);
        for index in 0..W {
            // SAFETY: the caller's promise.
            unsafe {
                if (first + pair * W + index).is_multiple_of(fields) {
                    *loaded = _mm512_loadu_si512(codes.cast());
                    *codes = codes.add(CODES);
                }
                // (codes AND mask) OR series.
                let at = _mm512_ternarylogic_epi32::<0xEA>(*loaded, mask, series);
                let line = _mm512_permutexvar_epi16(at, table);
                let out = out.add(pair * lines.pair_stride + index * lines.block_stride);
                _mm512_storeu_si512(out.cast(), line);
                *loaded = _mm512_srli_epi16::<BITS>(*loaded);
            }
        }
    }
}

/// Decodes eights of pairs of a group whose codes have 1 bit and whose lanes fill `W` lines.
///
/// # Safety
/// As [`decode`]; the plane's pairs come in whole eights, and the lines of eight pairs in whole loads.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn group_1<const W: usize>(lines: &Lines, group: usize, eights: usize, block: &[u8], out: &mut [u16]) {
    const ORDER: [u16; LINE] = series_by_series(16);
    let Group { ranges, mut codes, out } = Group::new(lines, group, block, out);
    // SAFETY: eight pairs have 16 ranges, and lines and codes as `look_up` wants them.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let mut loaded = _mm512_setzero_si512();
        for eight in 0..eights {
            let ranges = _mm512_loadu_si512(ranges.add(4 * 16 * eight).cast());
            let (min, scale) = minima_and_scales(ranges, 1.0);
            let low = numbers(min, scale, _mm512_setzero_ps());
            let high = numbers(min, scale, _mm512_set1_ps(1.0));
            let table = _mm512_permutexvar_epi16(order, rounded(low, high));
            let out = out.add(eight * PAIRS * lines.pair_stride);
            look_up::<1, 8, W>(lines, table, 0, &mut loaded, &mut codes, out);
        }
    }
}

/// The same with 2 bits.
///
/// # Safety
/// As [`group_1`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn group_2<const W: usize>(lines: &Lines, group: usize, eights: usize, block: &[u8], out: &mut [u16]) {
    const ORDER: [u16; LINE] = series_by_series(8);
    const LOW: [f32; 16] = repeated(0, 8);
    const HIGH: [f32; 16] = repeated(2, 8);
    let Group { ranges, mut codes, out } = Group::new(lines, group, block, out);
    // SAFETY: four pairs have 8 ranges, and lines and codes as `look_up` wants them.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let (low_codes, high_codes) = (_mm512_loadu_ps(LOW.as_ptr()), _mm512_loadu_ps(HIGH.as_ptr()));
        let mut loaded = _mm512_setzero_si512();
        for eight in 0..eights {
            for half in 0..2 {
                let ranges = ranges.add(4 * 8 * (2 * eight + half));
                let ranges = _mm512_broadcast_i64x4(_mm256_loadu_si256(ranges.cast()));
                let (min, scale) = minima_and_scales(ranges, 3.0);
                let (low, high) = (numbers(min, scale, low_codes), numbers(min, scale, high_codes));
                let table = _mm512_permutexvar_epi16(order, rounded(low, high));
                let out = out.add((eight * PAIRS + half * 4) * lines.pair_stride);
                look_up::<2, 4, W>(lines, table, half * 4 * W, &mut loaded, &mut codes, out);
            }
        }
    }
}

/// The same with 4 bits.
///
/// # Safety
/// As [`group_1`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn group_4<const W: usize>(lines: &Lines, group: usize, eights: usize, block: &[u8], out: &mut [u16]) {
    const CODES: [f32; 16] = repeated(0, 1);
    let Group { ranges, mut codes, out } = Group::new(lines, group, block, out);
    // SAFETY: eight pairs have 16 ranges, and lines and codes as `look_up` wants them.
    unsafe {
        let all_codes = _mm512_loadu_ps(CODES.as_ptr());
        let mut loaded = _mm512_setzero_si512();
        for eight in 0..eights {
            let ranges = _mm512_loadu_si512(ranges.add(4 * 16 * eight).cast());
            let (min, scale) = minima_and_scales(ranges, 15.0);
            for pair in 0..PAIRS {
                // Broadcast by permutations: to read single numbers of a vector that was just stored stalls for long.
                let (even, odd) =
                    (_mm512_set1_epi32(2 * pair as i32), _mm512_set1_epi32(2 * pair as i32 + 1));
                let of = |series, vector| _mm512_permutexvar_ps(series, vector);
                let even = numbers(of(even, min), of(even, scale), all_codes);
                let odd = numbers(of(odd, min), of(odd, scale), all_codes);
                let out = out.add((eight * PAIRS + pair) * lines.pair_stride);
                look_up::<4, 1, W>(lines, rounded(even, odd), pair * W, &mut loaded, &mut codes, out);
            }
        }
    }
}

/// The same with 8 bits.
///
/// # Safety
/// As [`group_1`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn group_8<const W: usize>(lines: &Lines, group: usize, eights: usize, block: &[u8], out: &mut [u16]) {
    let Group { ranges, mut codes, out } = Group::new(lines, group, block, out);
    // SAFETY: eight pairs have 16 ranges; a line has 32 bytes of codes and goes where `lines` says.
    unsafe {
        for eight in 0..eights {
            let ranges = _mm512_loadu_si512(ranges.add(4 * 16 * eight).cast());
            let (min, scale) = minima_and_scales(ranges, 255.0);
            let (min, scale) = (_mm512_castps_pd(min), _mm512_castps_pd(scale));
            for pair in 0..PAIRS {
                // The two series of the pair, in turn.
                let both = _mm512_set1_epi64(pair as i64);
                let min = _mm512_castpd_ps(_mm512_permutexvar_pd(both, min));
                let scale = _mm512_castpd_ps(_mm512_permutexvar_pd(both, scale));
                for index in 0..W {
                    let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
                    let high = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.add(16).cast()));
                    codes = codes.add(LINE);
                    let low = numbers(min, scale, _mm512_cvtepi32_ps(low));
                    let high = numbers(min, scale, _mm512_cvtepi32_ps(high));
                    let out =
                        out.add((eight * PAIRS + pair) * lines.pair_stride + index * lines.block_stride);
                    _mm512_storeu_si512(out.cast(), rounded(low, high));
                }
            }
        }
    }
}
