//! The inner loop for floating-point weights: `sum ← fma(w, x, sum)`, inputs in ascending order, in `f32`.

use std::marker::PhantomData;

use super::{
    PREFETCH_BYTES,
    lanes::{Kernel, LANES, Lanes},
};

/// How 16 weights are stored.
pub(super) trait Element {
    /// Bytes of one weight.
    const BYTES: usize;
    /// # Safety
    /// 16 weights are readable at `from`.
    unsafe fn load<L: Lanes>(lanes: L, from: *const u8) -> L::Floats;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const u8) -> L::Floats {
        // SAFETY: the caller's promise.
        unsafe { lanes.load(from.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const u8) -> L::Floats {
        // SAFETY: the caller's promise.
        unsafe { lanes.load_f16(from) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const u8) -> L::Floats {
        // SAFETY: the caller's promise.
        unsafe { lanes.load_bf16(from) }
    }
}

/// Adds the product of `R` activation rows with `P` panels, over `inputs` inputs, to `sums`.
pub(super) struct FloatTile<'a, E, const P: usize, const R: usize> {
    /// Each panel from its first input on, `[inputs][16]`.
    pub(super) panels: [&'a [u8]; P],
    /// From the first input of the first row on.
    pub(super) activations: &'a [f32],
    /// Elements from one row to the next.
    pub(super) row_elements: usize,
    pub(super) inputs: usize,
    /// `[R][P][16]`.
    pub(super) sums: &'a mut [[[f32; LANES]; P]],
    pub(super) element: PhantomData<E>,
}

impl<E: Element, const P: usize, const R: usize> Kernel for FloatTile<'_, E, P, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        assert!(self.sums.len() == R && self.activations.len() >= (R - 1) * self.row_elements + self.inputs);
        assert!(self.panels.iter().all(|panel| panel.len() >= self.inputs * LANES * E::BYTES));
        let rows = self.activations.as_ptr();
        // SAFETY: the lengths were just checked; `r < R`, `p < P` and `k < inputs`.
        unsafe {
            let mut sums = [[lanes.splat(0.0); P]; R];
            for r in 0..R {
                for p in 0..P {
                    sums[r][p] = lanes.load(self.sums[r][p].as_ptr());
                }
            }
            for k in 0..self.inputs {
                let mut weights = [lanes.splat(0.0); P];
                for p in 0..P {
                    let from = self.panels[p].as_ptr().add(k * LANES * E::BYTES);
                    lanes.prefetch(from.wrapping_add(PREFETCH_BYTES));
                    weights[p] = E::load(lanes, from);
                }
                for r in 0..R {
                    let x = lanes.splat(*rows.add(r * self.row_elements + k));
                    for p in 0..P {
                        sums[r][p] = lanes.mul_add(weights[p], x, sums[r][p]);
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    lanes.store(sums[r][p], self.sums[r][p].as_mut_ptr());
                }
            }
        }
    }
}
