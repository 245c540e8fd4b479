//! The tile unit of AMX: eight registers of 16 rows by 64 bytes, and one instruction that multiplies two of them.
//!
//! Written in assembly, because the language's own intrinsics are not stable. [`Tiles::multiply`] begins and ends
//! without a live tile register, so that nothing outside of it depends on their contents; what lasts longer is the
//! configuration alone, which [`Tiles`] holds for one thread.

use std::{
    arch::{asm, x86_64::*},
    marker::PhantomData,
};

/// Rows of a tile: rows of the left operand, or pairs of inputs of the right one.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile.
pub(crate) const ROW_BYTES: usize = 64;
/// Bytes of a tile whose rows follow each other.
pub(crate) const TILE_BYTES: usize = TILE_ROWS * ROW_BYTES;

/// bf16 inputs that one tile of each operand covers.
pub(crate) const STEP_INPUTS: usize = 32;

/// Whether this processor has tiles with bf16 products, and the system lets this process use them. Asks the system for it,
/// which holds for all threads, also those that start later.
pub(crate) fn available() -> bool {
    /// Leaf 7, register EDX: bf16 products, tiles.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if std::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// `arch_prctl` with which a process asks for a large register state.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    /// The state of the tile registers.
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tile registers of this thread, of 16 rows by 64 bytes, until dropped. Those of left operands and sums may have fewer rows.
pub(crate) struct Tiles {
    /// Belongs to the thread that configured it.
    this_thread: PhantomData<*const ()>,
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// # Safety
    /// [`available`] was true.
    pub(crate) unsafe fn configure() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::configure_few(TILE_ROWS) }
    }

    /// Tiles of `left_rows` rows, 1 to 16, for left operands and sums: what the other rows hold is neither read nor written, and a
    /// product takes less time.
    ///
    /// # Safety
    /// [`available`] was true.
    pub(crate) unsafe fn configure_few(left_rows: usize) -> Self {
        assert!((1..=TILE_ROWS).contains(&left_rows));
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(ROW_BYTES as u16);
        rows[..6].fill(left_rows as u8);
        rows[6..8].fill(TILE_ROWS as u8);
        let configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the instruction exists (the caller's promise) and reads the 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &configuration, options(nostack, readonly)) };
        Self { this_thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `configure` found the instructions. Without live tiles a context switch saves less.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// An operand of [`Tiles::multiply`]: two tiles for each step along the inputs.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    /// The first step's tiles: of both halves of the rows (left) or of the columns (right).
    pub(crate) tiles: [*const u8; 2],
    /// Bytes from one row of a tile to the next.
    pub(crate) row_stride: usize,
    /// Bytes from one step's tile to the next step's.
    pub(crate) step: usize,
}

/// Where [`Tiles::multiply`] adds up: `f32`, two by two tiles of 16 by 16.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// Of the first half of the rows, then of the second; of each the first half of the columns, then the second.
    pub(crate) tiles: [[*mut f32; 2]; 2],
    /// Bytes from one row to the next.
    pub(crate) row_stride: usize,
}

impl Tiles {
    /// `sums = [sums +] left · right` in bf16 products and `f32` sums: 32 rows by 32 columns by `32 · steps` inputs.
    ///
    /// A row of a left tile is 32 inputs; a row of a right tile is a pair of inputs of 16 columns, `[column][2]`.
    /// Within a step every sum takes its even inputs in one chain of fused multiply-adds and its odd inputs in another; their sum is
    /// then added. An element therefore depends on its own row and column only.
    ///
    /// # Safety
    /// All tiles of all steps are readable, those of `sums` writable; `sums` overlaps nothing else. `steps` is not 0.
    pub(crate) unsafe fn multiply(
        &self,
        left: Operand,
        right: Operand,
        steps: usize,
        sums: Sums,
        accumulate: bool,
    ) {
        let [[c00, c01], [c10, c11]] = sums.tiles;
        // SAFETY: the caller's promise; `self` proves that the tiles are configured on this thread.
        unsafe {
            if accumulate {
                asm!(
                    "tileloadd tmm0, [{c00} + {stride}*1]",
                    "tileloadd tmm1, [{c01} + {stride}*1]",
                    "tileloadd tmm2, [{c10} + {stride}*1]",
                    "tileloadd tmm3, [{c11} + {stride}*1]",
                    c00 = in(reg) c00, c01 = in(reg) c01, c10 = in(reg) c10, c11 = in(reg) c11,
                    stride = in(reg) sums.row_stride,
                    options(nostack, readonly)
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a0} + {a_stride}*1]",
                "tileloadd tmm6, [{b0} + {b_stride}*1]",
                "tileloadd tmm7, [{b1} + {b_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {a_stride}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b0}, {b_step}",
                "add {b1}, {b_step}",
                "dec {steps}",
                "jnz 2b",
                a0 = inout(reg) left.tiles[0] => _,
                a1 = inout(reg) left.tiles[1] => _,
                b0 = inout(reg) right.tiles[0] => _,
                b1 = inout(reg) right.tiles[1] => _,
                a_stride = in(reg) left.row_stride,
                b_stride = in(reg) right.row_stride,
                a_step = in(reg) left.step,
                b_step = in(reg) right.step,
                steps = inout(reg) steps => _,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{c00} + {stride}*1], tmm0",
                "tilestored [{c01} + {stride}*1], tmm1",
                "tilestored [{c10} + {stride}*1], tmm2",
                "tilestored [{c11} + {stride}*1], tmm3",
                c00 = in(reg) c00, c01 = in(reg) c01, c10 = in(reg) c10, c11 = in(reg) c11,
                stride = in(reg) sums.row_stride,
                options(nostack)
            );
        }
    }
}

impl Tiles {
    /// [`Self::multiply`] for the first half of the columns alone: 32 rows by 16 columns.
    ///
    /// # Safety
    /// As for [`Self::multiply`], the second half left aside.
    pub(crate) unsafe fn multiply_half(
        &self,
        left: Operand,
        right: Operand,
        steps: usize,
        sums: Sums,
        accumulate: bool,
    ) {
        let [[c0, _], [c1, _]] = sums.tiles;
        // SAFETY: the caller's promise; `self` proves that the tiles are configured on this thread.
        unsafe {
            if accumulate {
                asm!(
                    "tileloadd tmm0, [{c0} + {stride}*1]",
                    "tileloadd tmm2, [{c1} + {stride}*1]",
                    c0 = in(reg) c0, c1 = in(reg) c1,
                    stride = in(reg) sums.row_stride,
                    options(nostack, readonly)
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm2", options(nostack, nomem));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a0} + {a_stride}*1]",
                "tileloadd tmm6, [{b0} + {b_stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {a_stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b0}, {b_step}",
                "dec {steps}",
                "jnz 2b",
                a0 = inout(reg) left.tiles[0] => _,
                a1 = inout(reg) left.tiles[1] => _,
                b0 = inout(reg) right.tiles[0] => _,
                a_stride = in(reg) left.row_stride,
                b_stride = in(reg) right.row_stride,
                a_step = in(reg) left.step,
                b_step = in(reg) right.step,
                steps = inout(reg) steps => _,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{c0} + {stride}*1], tmm0",
                "tilestored [{c1} + {stride}*1], tmm2",
                c0 = in(reg) c0, c1 = in(reg) c1,
                stride = in(reg) sums.row_stride,
                options(nostack)
            );
        }
    }
}

/// Cache lines that are fetched ahead with each product of [`Tiles::multiply_row`]: as many as the product reads itself.
const AHEAD_LINES: usize = TILE_ROWS;

/// Memory that will be read soon, and that comes closer part by part.
pub(crate) struct Ahead<'a> {
    /// What is read next: it comes into the first-level cache.
    next: &'a [u16],
    /// What is read after that: it comes into the second-level cache.
    after: &'a [u16],
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(next: &'a [u16], after: &'a [u16]) -> Self {
        Self { next, after }
    }

    /// Asks for the next `lines` cache lines of both.
    #[inline(always)]
    pub(crate) fn fetch(&mut self, lines: usize) {
        Self::take::<_MM_HINT_T0>(&mut self.next, lines);
        Self::take::<_MM_HINT_T1>(&mut self.after, lines);
    }

    #[inline(always)]
    fn take<const HINT: i32>(from: &mut &[u16], lines: usize) {
        /// Numbers of a cache line.
        const LINE: usize = ROW_BYTES / size_of::<u16>();
        for _ in 0..lines.min(from.len() / LINE) {
            // SAFETY: a prefetch reads nothing; the address is inside the slice all the same.
            unsafe { _mm_prefetch::<HINT>(from.as_ptr().cast()) };
            *from = &from[LINE..];
        }
    }
}

impl Tiles {
    /// [`Self::multiply`] for the first half of the rows and `N` times 16 columns, `N` from 1 to 4: further tiles of columns follow
    /// at the distance of the first two. With each product comes a part of `ahead`.
    ///
    /// # Safety
    /// As for [`Self::multiply`], the second half of the rows left aside.
    #[inline]
    pub(crate) unsafe fn multiply_row<const N: usize>(
        &self,
        left: Operand,
        right: Operand,
        steps: usize,
        sums: Sums,
        accumulate: bool,
        ahead: &mut Ahead<'_>,
    ) {
        const { assert!(N >= 1 && N <= 4) };
        let neighbour = (right.tiles[1] as usize).wrapping_sub(right.tiles[0] as usize);
        let sums_neighbour = (sums.tiles[0][1] as usize).wrapping_sub(sums.tiles[0][0] as usize);
        let (mut a, mut b) = (left.tiles[0], right.tiles[0]);
        // One column of tiles: its number, the register of its sums and the one that its right operand passes through.
        macro_rules! load {
            ($column:literal, $sums:literal) => {
                if N > $column {
                    let c = sums.tiles[0][0].wrapping_byte_add($column * sums_neighbour);
                    asm!(
                        concat!("tileloadd ", $sums, ", [{c} + {stride}*1]"),
                        c = in(reg) c, stride = in(reg) sums.row_stride,
                        options(nostack, readonly)
                    );
                }
            };
        }
        macro_rules! add_product {
            ($column:literal, $sums:literal, $right:literal) => {
                if N > $column {
                    asm!(
                        concat!("tileloadd ", $right, ", [{b} + {stride}*1]"),
                        concat!("tdpbf16ps ", $sums, ", tmm4, ", $right),
                        b = in(reg) b.wrapping_add($column * neighbour), stride = in(reg) right.row_stride,
                        options(nostack, readonly)
                    );
                    ahead.fetch(AHEAD_LINES);
                }
            };
        }
        macro_rules! store {
            ($column:literal, $sums:literal) => {
                if N > $column {
                    let c = sums.tiles[0][0].wrapping_byte_add($column * sums_neighbour);
                    asm!(
                        concat!("tilestored [{c} + {stride}*1], ", $sums),
                        c = in(reg) c, stride = in(reg) sums.row_stride,
                        options(nostack)
                    );
                }
            };
        }
        // SAFETY: the caller's promise; `self` proves that the tiles are configured on this thread.
        unsafe {
            if accumulate {
                load!(0, "tmm0");
                load!(1, "tmm1");
                load!(2, "tmm2");
                load!(3, "tmm3");
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            for _ in 0..steps {
                asm!(
                    "tileloadd tmm4, [{a} + {stride}*1]",
                    a = in(reg) a, stride = in(reg) left.row_stride,
                    options(nostack, readonly)
                );
                add_product!(0, "tmm0", "tmm6");
                add_product!(1, "tmm1", "tmm7");
                add_product!(2, "tmm2", "tmm6");
                add_product!(3, "tmm3", "tmm7");
                (a, b) = (a.wrapping_add(left.step), b.wrapping_add(right.step));
            }
            store!(0, "tmm0");
            store!(1, "tmm1");
            store!(2, "tmm2");
            store!(3, "tmm3");
        }
    }
}
