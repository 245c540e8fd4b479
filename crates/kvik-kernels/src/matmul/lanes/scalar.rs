//! Lanes as arrays: portable, and the statement of what each operation means.

use half::{bf16, f16};

use super::{Kernel, LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type Floats = [f32; LANES];
    type Ints = [i32; LANES];
    type Codes = [u8; 64];

    const FLOAT_TILE_ROWS: usize = 2;
    const WIDE_CODES_ARE_SIGNED: bool = false;

    #[inline(never)]
    fn enter<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        [value; LANES]
    }

    #[inline(always)]
    fn to_floats(self, ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn add_128_times(self, low: Self::Ints, high: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| low[i] + 128 * high[i])
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // Not `f32::mul_add`: without an FMA instruction that is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn nibbles(self, bytes: Self::Codes) -> [Self::Codes; 2] {
        [bytes.map(|byte| byte & 0x0f), bytes.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    fn add_where(self, mask: u64, value: u8, codes: Self::Codes) -> Self::Codes {
        std::array::from_fn(|i| codes[i] + (mask >> i & 1) as u8 * value)
    }

    #[inline(always)]
    fn add_code(self, codes: Self::Codes, value: u8) -> Self::Codes {
        codes.map(|code| code + value)
    }

    #[inline(always)]
    fn dot(
        self,
        sums: Self::Ints,
        codes: [Self::Codes; 2],
        activations: [i32; 2],
        _wide: bool,
    ) -> Self::Ints {
        let activations = activations.map(i32::to_le_bytes);
        std::array::from_fn(|lane| {
            let mut sum = sums[lane];
            for (codes, activations) in codes.iter().zip(activations) {
                for i in 0..4 {
                    sum += i32::from(codes[4 * lane + i]) * i32::from(activations[i] as i8);
                }
            }
            sum
        })
    }

    #[inline(always)]
    fn floats_of_codes(self, codes: Self::Codes) -> [Self::Floats; 4] {
        std::array::from_fn(|i| std::array::from_fn(|lane| f32::from(codes[4 * lane + i])))
    }

    #[inline(always)]
    fn raised_pairs_of_codes(self, codes: Self::Codes) -> [[Self::Floats; 2]; 2] {
        std::array::from_fn(|pair| {
            std::array::from_fn(|half| {
                std::array::from_fn(|i| {
                    let row = LANES / 2 * half + i / 2;
                    f32::from(codes[4 * row + 2 * pair + i % 2]) + 128.0
                })
            })
        })
    }

    #[inline(always)]
    fn doubled(self, floats: Self::Floats) -> [Self::Floats; 2] {
        std::array::from_fn(|half| std::array::from_fn(|i| floats[LANES / 2 * half + i / 2]))
    }

    #[inline(always)]
    fn dot_bf16(self, sums: Self::Floats, weights: Self::Codes, activations: i32) -> Self::Floats {
        let number = |low: u8, high: u8| bf16::from_le_bytes([low, high]).to_f32();
        let [a, b, c, d] = activations.to_le_bytes();
        let (even, odd) = (number(a, b), number(c, d));
        let (weights, _) = weights.as_chunks::<4>();
        std::array::from_fn(|lane| {
            let [a, b, c, d] = weights[lane];
            sums[lane] + number(a, b) * even + number(c, d) * odd
        })
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}

    #[inline(always)]
    unsafe fn load_codes(self, from: *const u8) -> Self::Codes {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn store_codes(self, codes: Self::Codes, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; 64]>().write(codes) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::Floats {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, floats: Self::Floats, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(floats) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, floats: [Self::Floats; 2], to: *mut u16) {
        let rounded = floats.map(|floats| floats.map(|float| bf16::from_f32(float).to_bits()));
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[[u16; LANES]; 2]>().write_unaligned(rounded) }
    }

    #[inline(always)]
    unsafe fn store_bf16_pairs(self, floats: [Self::Floats; 2], to: *mut u16) {
        let pairs: [[u16; 2]; LANES] =
            std::array::from_fn(|lane| floats.map(|floats| bf16::from_f32(floats[lane]).to_bits()));
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[[u16; 2]; LANES]>().write_unaligned(pairs) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> Self::Floats {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[[u8; 2]; LANES]>().read() };
        halves.map(|half| f16::from_le_bytes(half).to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> Self::Floats {
        // SAFETY: the caller's promise.
        let halves = unsafe { from.cast::<[[u8; 2]; LANES]>().read() };
        halves.map(|half| bf16::from_le_bytes(half).to_f32())
    }

    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[u8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> Self::Floats {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(f32::from)
    }
}
