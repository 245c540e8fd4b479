//! Lanes as one 512-bit register, with the VNNI dot product.

use std::arch::x86_64::*;

use super::{Kernel, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has [`crate::Isa::Avx512`].
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

// Every block below is allowed because `self` exists: the processor has the instructions (see `Avx512::new`).
// Where memory is touched the caller's promise comes on top.
impl Lanes for Avx512 {
    type Floats = __m512;
    type Ints = __m512i;
    type Codes = __m512i;

    const FLOAT_TILE_ROWS: usize = 6;
    const WIDE_CODES_ARE_SIGNED: bool = false;

    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")]
        fn compiled<K: Kernel>(kernel: K, lanes: Avx512) -> K::Output {
            kernel.run(lanes)
        }
        // SAFETY: `self` proves the instructions.
        unsafe { compiled(kernel, self) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    fn to_floats(self, ints: __m512i) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn add_128_times(self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_epi32(low, _mm512_slli_epi32::<7>(high)) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn nibbles(self, bytes: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let mask = _mm512_set1_epi8(0x0f);
            [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
        }
    }

    #[inline(always)]
    fn add_where(self, mask: u64, value: u8, codes: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(value as i8)) }
    }

    #[inline(always)]
    fn add_code(self, codes: __m512i, value: u8) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_add_epi8(codes, _mm512_set1_epi8(value as i8)) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, codes: [__m512i; 2], activations: [i32; 2], _wide: bool) -> __m512i {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let sums = _mm512_dpbusd_epi32(sums, codes[0], _mm512_set1_epi32(activations[0]));
            _mm512_dpbusd_epi32(sums, codes[1], _mm512_set1_epi32(activations[1]))
        }
    }

    #[inline(always)]
    fn floats_of_codes(self, codes: __m512i) -> [__m512; 4] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let byte = _mm512_set1_epi32(0xff);
            [
                _mm512_cvtepi32_ps(_mm512_and_si512(codes, byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(codes), byte)),
                _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(codes), byte)),
                _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(codes)),
            ]
        }
    }

    #[inline(always)]
    fn raised_pairs_of_codes(self, codes: __m512i) -> [[__m512; 2]; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            // 128 as a number; a code goes into the third byte, the highest bits of the mantissa.
            let raised = _mm512_set1_epi32(0x4300_0000);
            const THIRD_BYTES: u64 = 0x4444_4444_4444_4444;
            // From the first and second, or third and fourth, byte of each of two equal neighbours.
            let first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 9, 0));
            let second =
                _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 10, 0, 0, 0, 11, 0));
            let [low, high] = doubled(codes);
            let mut pairs = [[_mm512_setzero_ps(); 2]; 2];
            for (pair, order) in [first, second].into_iter().enumerate() {
                for (half, bytes) in [low, high].into_iter().enumerate() {
                    let number = _mm512_mask_shuffle_epi8(raised, THIRD_BYTES, bytes, order);
                    pairs[pair][half] = _mm512_castsi512_ps(number);
                }
            }
            pairs
        }
    }

    #[inline(always)]
    fn doubled(self, floats: __m512) -> [__m512; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            let [low, high] = doubled(_mm512_castps_si512(floats));
            [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sums: __m512, weights: __m512i, activations: i32) -> __m512 {
        // SAFETY: `self` proves the instructions; all types are 512 bits of plain numbers.
        unsafe {
            let activations: __m512bh = std::mem::transmute(_mm512_set1_epi32(activations));
            _mm512_dpbf16_ps(sums, std::mem::transmute::<__m512i, __m512bh>(weights), activations)
        }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: `self` proves the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> __m512i {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn store_codes(self, codes: __m512i, to: *mut u8) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_storeu_si512(to.cast(), codes) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, floats: __m512, to: *mut f32) {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_storeu_ps(to, floats) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, floats: [__m512; 2], to: *mut u16) {
        // SAFETY: `self` proves the instructions, the caller the memory; both types are 512 bits of plain numbers.
        unsafe {
            let rounded = _mm512_cvtne2ps_pbh(floats[1], floats[0]);
            _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(rounded));
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, floats: [__m512; 2], to: *mut u16) {
        // SAFETY: `self` proves the instructions, the caller the memory; both types are 512 bits of plain numbers.
        unsafe {
            const INTERLEAVED: [u16; 32] = {
                let mut order = [0; 32];
                let mut i = 0;
                while i < 32 {
                    order[i] = (i / 2 + 16 * (i % 2)) as u16;
                    i += 1;
                }
                order
            };
            let rounded = _mm512_cvtne2ps_pbh(floats[1], floats[0]);
            let order = _mm512_loadu_si512(INTERLEAVED.as_ptr().cast());
            let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, rounded));
        }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512 {
        // SAFETY: `self` proves the instructions, the caller the memory.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
}

/// Each lane twice.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn doubled(lanes: __m512i) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        let high = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
        [_mm512_permutexvar_epi32(low, lanes), _mm512_permutexvar_epi32(high, lanes)]
    }
}
