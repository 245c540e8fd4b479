//! Sixteen lanes: the vector operations that the matrix kernels are written in, one implementation for each
//! instruction set.
//!
//! A panel of packed weights is 16 output features wide, so a kernel works on 16 lanes of `f32` or `i32` and on 64
//! codes at a time (4 inputs of 16 outputs): one AVX-512 register, two AVX2 registers, or an array. A kernel is one
//! generic function over [`Lanes`]; [`Lanes::enter`] compiles it with the instruction set enabled.
//!
//! A value of a [`Lanes`] type is a proof that the processor has its instructions: only [`dispatch`] makes one,
//! after [`Isa`] was found available. Arithmetic on lanes is therefore safe; only memory access is not.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::Isa;

/// Lanes of a vector: the output features of a panel.
pub(super) const LANES: usize = 16;

/// The operations of one instruction set.
///
/// Floating-point operations are IEEE single precision, one rounding each (`mul_add` may round once or twice: once in
/// the SIMD sets, twice in the scalar one). Pointers need no alignment.
pub(super) trait Lanes: Copy {
    /// 16 × `f32`.
    type Floats: Copy;
    /// 16 × `i32`.
    type Ints: Copy;
    /// 64 × `u8`: in the order of rows, 4 codes of each.
    type Codes: Copy;

    /// Rows of a floating-point tile two panels wide: as many as leave its sums in registers, at most 6.
    const FLOAT_TILE_ROWS: usize;
    /// Whether [`Self::dot`] takes wide codes as `code − 128`, because the set has no exact product of all `u8` codes.
    const WIDE_CODES_ARE_SIGNED: bool;

    /// Runs `kernel`, compiled with this instruction set.
    fn enter<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::Floats;
    fn splat_int(self, value: i32) -> Self::Ints;
    fn to_floats(self, ints: Self::Ints) -> Self::Floats;
    /// `low + 128 · high`.
    fn add_128_times(self, low: Self::Ints, high: Self::Ints) -> Self::Ints;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The low and the high nibbles of 64 bytes.
    fn nibbles(self, bytes: Self::Codes) -> [Self::Codes; 2];
    /// Adds `value` to the codes whose bit is set in `mask`.
    fn add_where(self, mask: u64, value: u8, codes: Self::Codes) -> Self::Codes;
    /// Adds `value` to all codes.
    fn add_code(self, codes: Self::Codes, value: u8) -> Self::Codes;
    /// `sums[lane] += Σ codes[0][4·lane + i] · activations[0][i] + Σ codes[1][4·lane + i] · activations[1][i]`, exactly.
    ///
    /// `activations` are twice 4 `i8` in −127..=127, as the bytes of an `i32`. Codes are below 64 unless `wide`.
    fn dot(self, sums: Self::Ints, codes: [Self::Codes; 2], activations: [i32; 2], wide: bool) -> Self::Ints;

    /// The 4 codes of each row as numbers: the first of all rows, the second, …
    fn floats_of_codes(self, codes: Self::Codes) -> [Self::Floats; 4];
    /// 128 plus the codes, all below 128, as numbers: first the first two of each row, row after row, then the last two.
    ///
    /// A code in the upper bits of a mantissa is a number already, at the cost of one shuffle.
    fn raised_pairs_of_codes(self, codes: Self::Codes) -> [[Self::Floats; 2]; 2];
    /// Each number twice.
    fn doubled(self, floats: Self::Floats) -> [Self::Floats; 2];
    /// `sums[lane] + weights[lane][0] · activations[0] + weights[lane][1] · activations[1]` in bf16 products and `f32` sums:
    /// `weights` are 16 × 2 bf16 numbers, `activations` two as the halves of an `i32`.
    fn dot_bf16(self, sums: Self::Floats, weights: Self::Codes, activations: i32) -> Self::Floats;

    /// Asks for the cache line at `from`, which may lie anywhere: a hint.
    fn prefetch(self, from: *const u8);

    /// # Safety
    /// 64 bytes are readable at `from`.
    unsafe fn load_codes(self, from: *const u8) -> Self::Codes;
    /// # Safety
    /// 64 bytes are writable at `to`.
    unsafe fn store_codes(self, codes: Self::Codes, to: *mut u8);
    /// # Safety
    /// 16 `f32` are readable at `from`.
    unsafe fn load(self, from: *const f32) -> Self::Floats;
    /// # Safety
    /// 16 `f32` are writable at `to`.
    unsafe fn store(self, floats: Self::Floats, to: *mut f32);
    /// Rounds 32 numbers to bf16, in their order.
    ///
    /// # Safety
    /// 32 `u16` are writable at `to`.
    unsafe fn store_bf16(self, floats: [Self::Floats; 2], to: *mut u16);
    /// Rounds 16 pairs of numbers to bf16: the first of `floats[0]`, the first of `floats[1]`, and so on.
    ///
    /// # Safety
    /// 32 `u16` are writable at `to`.
    unsafe fn store_bf16_pairs(self, floats: [Self::Floats; 2], to: *mut u16);
    /// # Safety
    /// 16 half-precision numbers are readable at `from`.
    unsafe fn load_f16(self, from: *const u8) -> Self::Floats;
    /// # Safety
    /// 16 bfloat16 numbers are readable at `from`.
    unsafe fn load_bf16(self, from: *const u8) -> Self::Floats;
    /// # Safety
    /// 16 `u8` are readable at `from`.
    unsafe fn load_u8(self, from: *const u8) -> Self::Floats;
    /// # Safety
    /// 16 `i8` are readable at `from`.
    unsafe fn load_i8(self, from: *const u8) -> Self::Floats;
}

/// A function over [`Lanes`] that is compiled once for each instruction set.
///
/// `run` must be `#[inline(always)]`, and so must everything generic over `Lanes` that it calls: that is how
/// the instruction set reaches the innermost operation.
pub(super) trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Something that picks its kernels once it knows the instruction set. Unlike a [`Kernel`] it is ordinary code.
pub(super) trait Program {
    fn run<L: Lanes + Sync>(self, lanes: L);
}

/// Runs `program` on the lanes of `isa`.
///
/// # Panics
/// If this processor does not have `isa`.
pub(super) fn dispatch(isa: Isa, program: impl Program) {
    assert!(isa <= Isa::detect(), "this processor has no {isa}");
    match isa {
        Isa::Scalar => program.run(scalar::Scalar),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `isa` was found available just above.
        Isa::Avx2 => program.run(unsafe { avx2::Avx2::new() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => program.run(unsafe { avx512::Avx512::new() }),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
            unreachable!("never detected on this architecture")
        }
    }
}
