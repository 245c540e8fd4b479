//! One piece of a product, computed by one thread: up to two panels by up to [`ROW_BLOCK`] rows.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    Activations, PackedMatrix, bf16, even_cuts,
    float_tile::{Bf16, Element, F16, F32, FloatTile},
    integer_tile::{IntegerTile, Unpack, unpacked_block_bytes},
    lanes::{Kernel, LANES, Lanes},
    panel::{Packed, PanelFormat, Unpacked},
};
use crate::{
    Isa,
    disjoint::Disjoint,
    quant::{
        TensorType,
        block_format::{BLOCK, BlockFormat, Scales, with_block_format},
    },
};

/// Panels of a piece.
pub(super) const PIECE_PANELS: usize = 2;
/// Rows of a piece at most: their sums (12 KiB) stay in the first-level cache.
pub(super) const ROW_BLOCK: usize = 96;
/// Up to so many rows the weights are decoded in registers, again for each tile; beyond, they are taken apart once.
/// Measured: with weights from memory the first is 20 to 40 % faster at 16 rows, because its prefetching goes on while
/// it computes, and still even or better at 32; with weights from a cache they are even at 24.
const FUSED_ROWS: usize = 32;
/// Rows of a tile that decodes: 1 panel × 6 rows × (two planes of integer sums and the float sums).
const FUSED_TILE_ROWS: usize = 6;
/// Rows of an integer tile: 2 panels × 4 rows × (two planes of integer sums and the float sums) fill 24 of the 32
/// registers of AVX-512. AVX2 keeps some in memory.
const TILE_ROWS: usize = 4;
/// Blocks taken apart at a time: two panels of them fill most of the first-level cache. Whole spans of every format.
const CHUNK_BLOCKS: usize = 24;
/// Inputs of floating-point panels that are walked at a time, for the same reason.
const CHUNK_INPUTS: usize = 256;

/// Where results go.
pub(super) struct Output<'a> {
    /// `[rows, features]`.
    pub(super) values: Disjoint<'a, f32>,
    /// The matrix's output features.
    pub(super) features: usize,
    /// `[features]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
}

impl Output<'_> {
    /// Writes the sums of a tile. Tile by tile, so that the stores drain while the next tile computes: writing a whole
    /// piece at its end cost 18 % of a prefill.
    pub(super) fn finish<L: Lanes, const P: usize>(
        &self,
        lanes: L,
        panels: Range<usize>,
        rows: Range<usize>,
        sums: &[[[f32; LANES]; P]],
    ) {
        let &Self { ref values, features: stride, bias, accumulate } = self;
        let (first, end) = (panels.start * LANES, stride.min(panels.end * LANES));
        let bias = bias.map(|bias| &bias[first..end]);
        let (start, width) = (rows.start * stride + first, end - first);
        lanes.enter(Finish { sums, values, start, stride, width, bias, accumulate });
    }
}

/// Rows `rows` of the activations times panels `panels` (one or two) of the weights.
pub(super) struct Piece<'a> {
    acts: &'a Activations,
    weight: &'a PackedMatrix,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &'a Output<'a>,
}

/// Runs `$run` with the constant `$R` equal to `$rows`, which is one of the numbers listed.
macro_rules! with_rows {
    ($rows:expr, [$($count:literal)*], $R:ident => $run:expr) => {
        match $rows {
            $($count => {
                const $R: usize = $count;
                $run
            })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

impl<'a> Piece<'a> {
    /// # Safety
    /// While the piece lives, nothing else uses these rows of these panels in the output.
    pub(super) unsafe fn new(
        acts: &'a Activations,
        weight: &'a PackedMatrix,
        panels: Range<usize>,
        rows: Range<usize>,
        out: &'a Output<'a>,
    ) -> Self {
        Self { acts, weight, panels, rows, out }
    }

    /// As [`Self::multiply`], in bf16 where the weights are multiplied so.
    pub(super) fn multiply_prompt<L: Lanes>(self, isa: Isa, lanes: L) {
        if bf16::takes(self.weight.ty()) {
            return bf16::multiply(
                isa,
                lanes,
                self.acts.bf16_rows(),
                self.weight,
                self.panels,
                self.rows,
                self.out,
            );
        }
        for rows in even_cuts(self.rows.clone(), ROW_BLOCK) {
            Self { rows, panels: self.panels.clone(), ..self }.multiply(lanes);
        }
    }

    pub(super) fn multiply<L: Lanes>(self, lanes: L) {
        with_block_format!(
            self.weight.ty(),
            F => if self.rows.len() <= FUSED_ROWS {
                self.few_rows::<L, F>(lanes);
            } else {
                match F::SCALES {
                    Scales::Single => self.many_rows::<L, F, Unpacked<1, false>>(lanes),
                    Scales::NestedHalves => self.many_rows::<L, F, Unpacked<2, false>>(lanes),
                    Scales::WithMin | Scales::NestedWithMin => self.many_rows::<L, F, Unpacked<1, true>>(lanes),
                }
            },
            _ => match self.weight.ty() {
                TensorType::F32 => self.floats::<L, F32>(lanes),
                TensorType::F16 => self.floats::<L, F16>(lanes),
                _ => self.floats::<L, Bf16>(lanes),
            }
        );
    }

    /// Weights decoded in registers, again for each tile.
    fn few_rows<L: Lanes, F: BlockFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        for panel in self.panels.clone() {
            for tile in even_cuts(self.rows.clone(), FUSED_TILE_ROWS) {
                let mut sums = [[[0.0; LANES]; 1]; FUSED_TILE_ROWS];
                with_rows!(tile.len(), [1 2 3 4 5 6], R => lanes.enter(IntegerTile::<Packed<F>, 1, R> {
                    panels: [self.weight.panel(panel).as_ptr()],
                    activations: &self.acts.blocks()[tile.start * blocks..],
                    row_blocks: blocks,
                    blocks,
                    sums: &mut sums[..R],
                    format: PhantomData,
                }));
                self.out.finish(lanes, panel..panel + 1, tile.clone(), &sums[..tile.len()]);
            }
        }
    }

    /// Weights taken apart chunk by chunk, for many tiles.
    fn many_rows<L: Lanes, F: BlockFormat, U: PanelFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        let mut sums = SumsScratch::new();
        let sums = sums.zeroed(self.rows.len());
        let mut scratch = UnpackScratch([const { MaybeUninit::uninit() }; UNPACK_BYTES]);
        let chunk_bytes = CHUNK_BLOCKS * unpacked_block_bytes::<U>();
        for first in (0..blocks).step_by(CHUNK_BLOCKS) {
            let count = CHUNK_BLOCKS.min(blocks - first);
            for (i, panel) in self.panels.clone().enumerate() {
                let to = &mut scratch.0[i * chunk_bytes..(i + 1) * chunk_bytes];
                let panel = self.weight.panel(panel);
                lanes.enter(Unpack::<F> { panel, first, blocks: count, to, format: PhantomData });
            }
            // A piece of one panel computes it twice, and drops the second result.
            let start = scratch.0.as_ptr().cast::<u8>();
            let panels = [start, start.wrapping_add((self.panels.len() - 1) * chunk_bytes)];
            for tile in even_cuts(self.rows.clone(), TILE_ROWS) {
                let sums = &mut sums[tile.start - self.rows.start..tile.end - self.rows.start];
                with_rows!(tile.len(), [1 2 3 4], R => lanes.enter(IntegerTile::<U, PIECE_PANELS, R> {
                    panels,
                    activations: &self.acts.blocks()[tile.start * blocks + first..],
                    row_blocks: blocks,
                    blocks: count,
                    sums,
                    format: PhantomData,
                }));
                if first + count == blocks {
                    self.out.finish(lanes, self.panels.clone(), tile, sums);
                }
            }
        }
    }

    fn floats<L: Lanes, E: Element>(&self, lanes: L) {
        let cols = self.acts.cols();
        let mut sums = SumsScratch::new();
        let sums = sums.zeroed(self.rows.len());
        for first in (0..cols).step_by(CHUNK_INPUTS) {
            let inputs = CHUNK_INPUTS.min(cols - first);
            let panels = [self.panels.start, self.panels.end - 1]
                .map(|panel| &self.weight.panel(panel)[first * LANES * E::BYTES..]);
            for tile in even_cuts(self.rows.clone(), L::FLOAT_TILE_ROWS) {
                let sums = &mut sums[tile.start - self.rows.start..tile.end - self.rows.start];
                with_rows!(tile.len(), [1 2 3 4 5 6], R => lanes.enter(FloatTile::<E, PIECE_PANELS, R> {
                    panels,
                    activations: &self.acts.floats()[tile.start * cols + first..],
                    row_elements: cols,
                    inputs,
                    sums,
                    element: PhantomData,
                }));
                if first + inputs == cols {
                    self.out.finish(lanes, self.panels.clone(), tile, sums);
                }
            }
        }
    }
}

/// The sums of a piece, `[rows][panels][16]`, while its chunks are added up.
struct SumsScratch([MaybeUninit<[[f32; LANES]; PIECE_PANELS]>; ROW_BLOCK]);

impl SumsScratch {
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; ROW_BLOCK])
    }

    fn zeroed(&mut self, rows: usize) -> &mut [[[f32; LANES]; PIECE_PANELS]] {
        let sums = &mut self.0[..rows];
        for sum in &mut *sums {
            sum.write([[0.0; LANES]; PIECE_PANELS]);
        }
        // SAFETY: all of them were just written.
        unsafe { sums.assume_init_mut() }
    }
}

/// Room for a chunk of two panels in the larger of the unpacked formats.
#[repr(align(64))]
struct UnpackScratch([MaybeUninit<u8>; UNPACK_BYTES]);

const UNPACK_BYTES: usize = PIECE_PANELS * CHUNK_BLOCKS * unpacked_block_bytes::<Unpacked<2, false>>();

/// The end of a tile: bias, residual, store.
struct Finish<'a, const P: usize> {
    sums: &'a [[[f32; LANES]; P]],
    values: &'a Disjoint<'a, f32>,
    /// Where the tile's first row starts, how far it is to the next, and how many features it has.
    start: usize,
    stride: usize,
    width: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl<const P: usize> Kernel for Finish<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (r, sums) in self.sums.iter().enumerate() {
            let start = self.start + r * self.stride;
            // SAFETY: promised to `Piece::new`.
            let out = unsafe { self.values.slice(start..start + self.width) };
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
