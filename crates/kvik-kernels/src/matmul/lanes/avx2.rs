//! Lanes as two 256-bit registers, with the 16-bit dot products of AVX2.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has [`crate::Isa::Avx2`].
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

// Every block below is allowed because `self` exists: the processor has the instructions (see `Avx2::new`).
// Where memory is touched the caller's promise comes on top.
impl Lanes for Avx2 {
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];
    type Codes = [__m256i; 2];

    const FLOAT_TILE_ROWS: usize = 2;
    const WIDE_CODES_ARE_SIGNED: bool = true;

    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled<K: Kernel>(kernel: K, lanes: Avx2) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` proves the instructions.
        unsafe { compiled(kernel, self) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_set1_epi32(value); 2] }
    }

    #[inline(always)]
    fn to_floats(self, ints: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])] }
    }

    #[inline(always)]
    fn add_128_times(self, low: [__m256i; 2], high: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            [
                _mm256_add_epi32(low[0], _mm256_slli_epi32::<7>(high[0])),
                _mm256_add_epi32(low[1], _mm256_slli_epi32::<7>(high[1])),
            ]
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn nibbles(self, bytes: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let mask = _mm256_set1_epi8(0x0f);
            let high = [_mm256_srli_epi16::<4>(bytes[0]), _mm256_srli_epi16::<4>(bytes[1])];
            [
                [_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)],
                [_mm256_and_si256(high[0], mask), _mm256_and_si256(high[1], mask)],
            ]
        }
    }

    #[inline(always)]
    fn add_where(self, mask: u64, value: u8, codes: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe { [add_where(mask as u32, value, codes[0]), add_where((mask >> 32) as u32, value, codes[1])] }
    }

    #[inline(always)]
    fn add_code(self, codes: [__m256i; 2], value: u8) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let value = _mm256_set1_epi8(value as i8);
            [_mm256_add_epi8(codes[0], value), _mm256_add_epi8(codes[1], value)]
        }
    }

    #[inline(always)]
    fn dot(
        self,
        sums: [__m256i; 2],
        codes: [[__m256i; 2]; 2],
        activations: [i32; 2],
        wide: bool,
    ) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let a = [_mm256_set1_epi32(activations[0]), _mm256_set1_epi32(activations[1])];
            let [low, high] = [[codes[0][0], codes[1][0]], [codes[0][1], codes[1][1]]];
            if wide {
                [dot_wide(sums[0], low, a), dot_wide(sums[1], high, a)]
            } else {
                [dot_narrow(sums[0], low, a), dot_narrow(sums[1], high, a)]
            }
        }
    }

    #[inline(always)]
    fn floats_of_codes(self, codes: [__m256i; 2]) -> [[__m256; 2]; 4] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let byte = _mm256_set1_epi32(0xff);
            let mut floats = [[_mm256_setzero_ps(); 2]; 4];
            for i in 0..2 {
                let second = _mm256_srli_epi32::<8>(codes[i]);
                let third = _mm256_srli_epi32::<16>(codes[i]);
                floats[0][i] = _mm256_cvtepi32_ps(_mm256_and_si256(codes[i], byte));
                floats[1][i] = _mm256_cvtepi32_ps(_mm256_and_si256(second, byte));
                floats[2][i] = _mm256_cvtepi32_ps(_mm256_and_si256(third, byte));
                floats[3][i] = _mm256_cvtepi32_ps(_mm256_srli_epi32::<24>(codes[i]));
            }
            floats
        }
    }

    #[inline(always)]
    fn raised_pairs_of_codes(self, codes: [__m256i; 2]) -> [[[__m256; 2]; 2]; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let raised = _mm256_set1_epi32(0x4300_0000);
            // Zero, or the codes of two equal neighbours in their third bytes.
            let first = _mm256_setr_epi8(
                -1, -1, 0, -1, -1, -1, 1, -1, -1, -1, 8, -1, -1, -1, 9, -1, -1, -1, 0, -1, -1, -1, 1, -1, -1,
                -1, 8, -1, -1, -1, 9, -1,
            );
            let second = _mm256_setr_epi8(
                -1, -1, 2, -1, -1, -1, 3, -1, -1, -1, 10, -1, -1, -1, 11, -1, -1, -1, 2, -1, -1, -1, 3, -1,
                -1, -1, 10, -1, -1, -1, 11, -1,
            );
            let mut pairs = [[[_mm256_setzero_ps(); 2]; 2]; 2];
            for half in 0..2 {
                let doubled = doubled(codes[half]);
                for (pair, order) in [first, second].into_iter().enumerate() {
                    for i in 0..2 {
                        let number = _mm256_or_si256(raised, _mm256_shuffle_epi8(doubled[i], order));
                        pairs[pair][half][i] = _mm256_castsi256_ps(number);
                    }
                }
            }
            pairs
        }
    }

    #[inline(always)]
    fn doubled(self, floats: [__m256; 2]) -> [[__m256; 2]; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let mut halves = [[_mm256_setzero_ps(); 2]; 2];
            for half in 0..2 {
                let doubled = doubled(_mm256_castps_si256(floats[half]));
                for i in 0..2 {
                    halves[half][i] = _mm256_castsi256_ps(doubled[i]);
                }
            }
            halves
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sums: [__m256; 2], weights: [__m256i; 2], activations: i32) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = _mm256_castsi256_ps(_mm256_set1_epi32(activations << 16));
            let odd =
                _mm256_and_ps(_mm256_castsi256_ps(_mm256_set1_epi32(activations)), _mm256_castsi256_ps(high));
            let mut sums = sums;
            for i in 0..2 {
                let of_even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(weights[i]));
                let of_odd = _mm256_castsi256_ps(_mm256_and_si256(weights[i], high));
                sums[i] = _mm256_fmadd_ps(of_even, even, sums[i]);
                sums[i] = _mm256_fmadd_ps(of_odd, odd, sums[i]);
            }
            sums
        }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: `self` proves the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> [__m256i; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn store_codes(self, codes: [__m256i; 2], to: *mut u8) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            _mm256_storeu_si256(to.cast(), codes[0]);
            _mm256_storeu_si256(to.add(32).cast(), codes[1]);
        }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, floats: [__m256; 2], to: *mut f32) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            _mm256_storeu_ps(to, floats[0]);
            _mm256_storeu_ps(to.add(8), floats[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, floats: [[__m256; 2]; 2], to: *mut u16) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            for (i, floats) in floats.into_iter().enumerate() {
                // Packing goes by halves of a register, and the permutation puts the quarters in order.
                let packed = _mm256_packus_epi32(round_bf16(floats[0]), round_bf16(floats[1]));
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
                _mm256_storeu_si256(to.add(16 * i).cast(), ordered);
            }
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, floats: [[__m256; 2]; 2], to: *mut u16) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            for i in 0..2 {
                let odd = _mm256_slli_epi32::<16>(round_bf16(floats[1][i]));
                _mm256_storeu_si256(to.add(16 * i).cast(), _mm256_or_si256(round_bf16(floats[0][i]), odd));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> [__m256; 2] {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
}

/// Each lane twice.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn doubled(lanes: __m256i) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
            _mm256_permutevar8x32_epi32(lanes, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)),
        ]
    }
}

/// To the nearest bf16, ties to even, in the low half of each lane. What is no number stays none.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn round_bf16(floats: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(floats);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let no_number = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(floats, floats));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, no_number))
    }
}

/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn add_where(mask: u32, value: u8, codes: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        // Each byte gets the mask byte that holds its bit, then looks at that bit alone.
        let byte_of_lane =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit_of_lane = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask as i32), byte_of_lane);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of_lane), bit_of_lane);
        _mm256_add_epi8(codes, _mm256_and_si256(set, _mm256_set1_epi8(value as i8)))
    }
}

/// `maddubs` adds two u8·i8 products into an i16, and saturates. With codes below 64 the products are at most 63·127
/// in size, so that two such pairs still fit.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn dot_narrow(sums: __m256i, codes: [__m256i; 2], activations: [__m256i; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_add_epi16(
            _mm256_maddubs_epi16(codes[0], activations[0]),
            _mm256_maddubs_epi16(codes[1], activations[1]),
        );
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Wide codes are made signed, and their signs moved to the activations: products of at most 128·127, one pair fits.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn dot_wide(sums: __m256i, codes: [__m256i; 2], activations: [__m256i; 2]) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = sums;
        for i in 0..2 {
            let signed = _mm256_xor_si256(codes[i], _mm256_set1_epi8(-128));
            let pairs =
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(activations[i], signed));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        sums
    }
}
