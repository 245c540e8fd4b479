//! The limits of the machine: loops that do nothing but arithmetic in registers, or nothing but read memory.
//!
//! A kernel's speed means little by itself. Divided by what these loops reach on the same machine in the same minute
//! it says how much of the machine is left (the roofline model: Williams, Waterman and Patterson 2009). The loops use
//! the instructions that the kernels of their set are made of, on enough independent sums to hide every latency.

use std::hint::black_box;

use crate::Isa;

/// A kind of arithmetic that has a peak of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Products of `u8` and `i8`, summed in `i32`: what quantised weights are multiplied with.
    Int8Dot,
    /// Products of bf16, summed in `f32`: what attention is made of and, on some sets, the products of prompts. Sets without
    /// such an instruction widen to `f32`.
    Bf16Dot,
    /// `f32` multiply-add: what floating-point weights are multiplied with.
    F32MulAdd,
}

/// Runs `turns` turns of a loop of `arithmetic` on the calling thread. Returns the operations done, a multiplication
/// and an addition counted as one each.
///
/// # Panics
/// If this processor does not have `isa`.
pub fn compute(isa: Isa, arithmetic: Arithmetic, turns: u64) -> u64 {
    assert!(isa <= Isa::detect(), "this processor has no {isa}");
    let products = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set was found available just above.
        Isa::Amx if arithmetic == Arithmetic::Bf16Dot => unsafe { x86::compute_tiles(turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { x86::compute_avx512(arithmetic, turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::compute_avx2(arithmetic, turns) },
        _ => match arithmetic {
            Arithmetic::Int8Dot => portable(turns, 3i32, |sum, x| sum.wrapping_mul(x).wrapping_add(x)),
            Arithmetic::Bf16Dot | Arithmetic::F32MulAdd => portable(turns, 0.5f32, |sum, x| sum * x + x),
        },
    };
    2 * turns * products as u64
}

/// Eight registers of four lanes, as far as the compiler finds them; returns the products of a turn.
fn portable<T: Copy + Default>(turns: u64, x: T, step: impl Fn(T, T) -> T) -> usize {
    let (mut sums, x) = ([T::default(); 32], black_box(x));
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = step(*sum, x);
        }
    }
    black_box(sums).len()
}

/// Reads all of `bytes` once, front to back, on the calling thread. Returns a sum that depends on every byte but the
/// last few (less than 64), so that no read can be left out.
///
/// # Panics
/// If this processor does not have `isa`.
pub fn read(isa: Isa, bytes: &[u8]) -> u64 {
    assert!(isa <= Isa::detect(), "this processor has no {isa}");
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set was found available just above.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe { x86::read_avx512(bytes) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::read_avx2(bytes) },
        _ => read_portable(bytes),
    }
}

/// Bytes that the loops read in a turn.
const LINE: usize = 64;

fn read_portable(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; LINE / 8];
    for line in bytes.as_chunks::<LINE>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Arithmetic, LINE, black_box};
    use crate::amx::{Operand, ROW_BYTES, Sums, TILE_BYTES, Tiles};

    /// Independent sums: more than the latency of a multiply-add times its throughput on any processor known, and as
    /// many as AVX2 has registers for.
    const SUMS: usize = 12;

    /// Returns the products of a turn, as its twins do.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16")]
    pub(super) fn compute_avx512(arithmetic: Arithmetic, turns: u64) -> usize {
        match arithmetic {
            Arithmetic::Int8Dot => {
                let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(-5)));
                let mut sums = [_mm512_setzero_si512(); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = _mm512_dpbusd_epi32(*sum, a, b);
                    }
                }
                black_box(sums);
                SUMS * 64
            }
            Arithmetic::Bf16Dot => {
                let ones = black_box(_mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(1.0)));
                let mut sums = [_mm512_setzero_ps(); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = _mm512_dpbf16_ps(*sum, ones, ones);
                    }
                }
                black_box(sums);
                SUMS * 32
            }
            Arithmetic::F32MulAdd => {
                let half = black_box(_mm512_set1_ps(0.5));
                let mut sums = [_mm512_setzero_ps(); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = _mm512_fmadd_ps(*sum, half, half);
                    }
                }
                black_box(sums);
                SUMS * 16
            }
        }
    }

    /// Tiles from the first-level cache: a tile cannot be multiplied without being loaded before long, and the loads are hidden.
    ///
    /// # Safety
    /// The processor has AMX, and the system lets this process use it.
    pub(super) unsafe fn compute_tiles(turns: u64) -> usize {
        /// Four products of 16 rows, 16 columns and 32 inputs.
        const PRODUCTS: usize = 4 * 16 * 16 * 32;
        #[repr(align(64))]
        struct Memory<T>(T);
        let (tiles, mut sums) = (Memory([0u8; 4 * TILE_BYTES]), Memory([0.0f32; 4 * 256]));
        let tile = |index: usize| tiles.0[index * TILE_BYTES..].as_ptr();
        let operand =
            |first| Operand { tiles: [tile(first), tile(first + 1)], row_stride: ROW_BYTES, step: 0 };
        let mut sum = |index: usize| sums.0[256 * index..].as_mut_ptr();
        let sums = Sums { tiles: [[sum(0), sum(1)], [sum(2), sum(3)]], row_stride: ROW_BYTES };
        // SAFETY: the processor has tiles (the caller's promise); every step reads the same four, and `sums` are four more.
        unsafe {
            let unit = Tiles::configure();
            unit.multiply(operand(0), operand(2), turns.max(1) as usize, sums, false);
        }
        PRODUCTS
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn compute_avx2(arithmetic: Arithmetic, turns: u64) -> usize {
        match arithmetic {
            Arithmetic::Int8Dot => {
                let (ones, b) = (black_box(_mm256_set1_epi16(1)), black_box(_mm256_set1_epi8(-5)));
                let mut sums = [_mm256_setzero_si256(); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        // The sum's own bytes are a factor, so that no product can be taken out of the loop.
                        let pairs = _mm256_maddubs_epi16(*sum, b);
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                    }
                }
                black_box(sums);
                SUMS * 32
            }
            Arithmetic::Bf16Dot | Arithmetic::F32MulAdd => {
                let half = black_box(_mm256_set1_ps(0.5));
                let mut sums = [_mm256_setzero_ps(); SUMS];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = _mm256_fmadd_ps(*sum, half, half);
                    }
                }
                black_box(sums);
                SUMS * 8
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn read_avx512(bytes: &[u8]) -> u64 {
        let mut sum = _mm512_setzero_si512();
        for line in bytes.as_chunks::<LINE>().0 {
            // SAFETY: a line is 64 bytes, and the load needs no alignment.
            sum = _mm512_add_epi64(sum, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
        }
        _mm512_reduce_add_epi64(sum) as u64
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn read_avx2(bytes: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 2];
        for line in bytes.as_chunks::<LINE>().0 {
            for (sum, half) in sums.iter_mut().zip(line.as_chunks::<32>().0) {
                // SAFETY: half a line is 32 bytes, and the load needs no alignment.
                *sum = _mm256_add_epi64(*sum, unsafe { _mm256_loadu_si256(half.as_ptr().cast()) });
            }
        }
        let mut words = [0u64; 4];
        // SAFETY: `words` has room for the 32 bytes, and the store needs no alignment.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), _mm256_add_epi64(sums[0], sums[1])) };
        words.into_iter().fold(0, u64::wrapping_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read_on_every_instruction_set() {
        let bytes: Vec<u8> = (0..64 * 37).map(|i| (i * 131 % 251) as u8).collect();
        let want = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
        for isa in Isa::available() {
            assert_eq!(read(isa, &bytes), want, "{isa}");
            for index in [0, 63, 64, 1000, 64 * 37 - 1] {
                let mut changed = bytes.clone();
                changed[index] ^= 1;
                assert_ne!(read(isa, &changed), want, "{isa} does not read byte {index}");
            }
        }
    }

    #[test]
    fn operations_are_counted_for_whole_registers() {
        let every = [Arithmetic::Int8Dot, Arithmetic::Bf16Dot, Arithmetic::F32MulAdd];
        assert_eq!(every.map(|kind| compute(Isa::Scalar, kind, 10)), [640; 3]);
        if Isa::detect() >= Isa::Avx2 {
            assert_eq!(every.map(|kind| compute(Isa::Avx2, kind, 1)), [768, 192, 192]);
        }
        if Isa::detect() >= Isa::Avx512 {
            assert_eq!(every.map(|kind| compute(Isa::Avx512, kind, 1)), [1536, 768, 384]);
        }
        if Isa::detect() >= Isa::Amx {
            assert_eq!(every.map(|kind| compute(Isa::Amx, kind, 1)), [1536, 65536, 384]);
        }
    }
}
