//! Where the sums of a product go: bias and residual, or a gate.

use std::ops::Range;

use super::{
    lanes::{Kernel, LANES, Lanes},
    piece::PIECE_PANELS,
};
use crate::{Activation, disjoint::Disjoint};

/// Sums of a row of a piece: of both panels.
pub(super) type RowSums = [[f32; LANES]; PIECE_PANELS];

/// What happens to a sum on its way out.
#[derive(Clone, Copy)]
pub(super) enum Epilogue<'a> {
    /// It is a result of the first panel or, in the next 16 features, of the second.
    Sum {
        /// `[features]`
        bias: Option<&'a [f32]>,
        /// Added to what is there already.
        accumulate: bool,
    },
    /// The result is the activation of the first panel's sum times the second panel's.
    Gate(Activation),
}

/// The result of a product, `[rows, features]`.
pub(super) struct Output<'a> {
    pub(super) values: Disjoint<'a, f32>,
    pub(super) features: usize,
    pub(super) epilogue: Epilogue<'a>,
}

impl Output<'_> {
    /// Writes the sums of some rows, `features` of them from `first` on. Tile by tile, so that the stores drain while the next tile
    /// computes: writing a whole piece at its end cost 18 % of a prefill.
    pub(super) fn finish<L: Lanes>(
        &self,
        lanes: L,
        first: usize,
        features: usize,
        rows: Range<usize>,
        sums: &[RowSums],
    ) {
        let (stride, width) = (self.features, features.min(self.features - first));
        let to = Target { values: &self.values, start: rows.start * stride + first, stride, width };
        match self.epilogue {
            Epilogue::Sum { bias, accumulate } => {
                let bias = bias.map(|bias| &bias[first..first + width]);
                lanes.enter(Sum { sums, to, bias, accumulate });
            }
            Epilogue::Gate(activation) => lanes.enter(Gate { sums, to, activation }),
        }
    }
}

/// Where the results of a tile go.
struct Target<'a> {
    values: &'a Disjoint<'a, f32>,
    /// Where the first row starts, how far it is to the next, and how many features are written.
    start: usize,
    stride: usize,
    width: usize,
}

impl Target<'_> {
    /// The features of row `row` of the tile.
    ///
    /// # Safety
    /// Nothing else uses them meanwhile: promised to `Piece::new`.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "as `Disjoint::slice`, which promises disjointness")]
    unsafe fn row(&self, row: usize) -> &mut [f32] {
        let start = self.start + row * self.stride;
        // SAFETY: the caller's promise.
        unsafe { self.values.slice(start..start + self.width) }
    }
}

struct Sum<'a> {
    sums: &'a [RowSums],
    to: Target<'a>,
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Kernel for Sum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (r, sums) in self.sums.iter().enumerate() {
            // SAFETY: promised to `Piece::new`.
            let out = unsafe { self.to.row(r) };
            let (whole, rest) = out.as_chunks_mut::<LANES>();
            for (p, out) in whole.iter_mut().enumerate() {
                // SAFETY: all pointers are to 16 numbers.
                unsafe {
                    let mut sum = lanes.load(sums[p].as_ptr());
                    if let Some(bias) = self.bias {
                        sum = lanes.add(sum, lanes.load(bias[p * LANES..][..LANES].as_ptr()));
                    }
                    if self.accumulate {
                        sum = lanes.add(lanes.load(out.as_ptr()), sum);
                    }
                    lanes.store(sum, out.as_mut_ptr());
                }
            }
            let done = LANES * whole.len();
            for (i, out) in rest.iter_mut().enumerate() {
                let mut sum = sums.as_flattened()[done + i];
                if let Some(bias) = self.bias {
                    sum += bias[done + i];
                }
                *out = if self.accumulate { *out + sum } else { sum };
            }
        }
    }
}

struct Gate<'a> {
    sums: &'a [RowSums],
    to: Target<'a>,
    activation: Activation,
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        match self.activation {
            // One loop for each, so that the compiler makes vector code of it.
            Activation::Silu => self.each(|gate| Activation::Silu.of(gate)),
            Activation::GeluTanh => self.each(|gate| Activation::GeluTanh.of(gate)),
            Activation::Gelu => self.each(|gate| Activation::Gelu.of(gate)),
            Activation::Relu => self.each(|gate| Activation::Relu.of(gate)),
        }
    }
}

impl Gate<'_> {
    #[inline(always)]
    fn each(self, activation: impl Fn(f32) -> f32) {
        for (r, [gates, ups]) in self.sums.iter().enumerate() {
            let mut products = [0.0; LANES];
            for lane in 0..LANES {
                products[lane] = activation(gates[lane]) * ups[lane];
            }
            // SAFETY: promised to `Piece::new`.
            let out = unsafe { self.to.row(r) };
            match out.first_chunk_mut::<LANES>() {
                Some(out) => *out = products,
                None => out.copy_from_slice(&products[..self.to.width]),
            }
        }
    }
}
