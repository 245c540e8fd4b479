//! One piece of a product, computed by one thread: up to two panels by up to [`ROW_BLOCK`] rows.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    Activations, PackedMatrix,
    float_tile::{Bf16, Element, F16, F32, FloatTile},
    integer_tile::{IntegerTile, Unpack, unpacked_block_bytes},
    lanes::{Kernel, LANES, Lanes},
    panel::{Packed, PanelFormat, Unpacked},
};
use crate::{
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
/// Up to so many rows the weights are decoded in registers, in a single tile.
pub(super) const FUSED_ROWS: usize = 4;
/// Rows of a tile: 2 panels × 6 rows × (integer and float sums) fill 24 of the 32 vector registers.
const TILE_ROWS: usize = 6;
/// Blocks taken apart at a time: two panels of them fill most of the first-level cache. Whole spans of every format.
const CHUNK_BLOCKS: usize = 24;
/// Inputs of floating-point panels that are walked at a time, for the same reason.
const CHUNK_INPUTS: usize = 256;

/// Where results go.
pub(super) struct Output<'a> {
    /// `[rows, features.len()]`.
    pub(super) values: Disjoint<'a, f32>,
    /// The matrix's output features that are wanted.
    pub(super) features: Range<usize>,
    /// Of the features from 0 on.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) accumulate: bool,
}

/// Rows `rows` of the activations times panels `panels` (one or two) of the weights.
pub(super) struct Piece<'a> {
    acts: &'a Activations,
    weight: &'a PackedMatrix,
    panels: Range<usize>,
    rows: Range<usize>,
    out: &'a Output<'a>,
}

/// Runs `$run` with the constant `$R` equal to `$rows`, which is 1 to 6.
macro_rules! with_rows {
    ($rows:expr, $R:ident => $run:expr) => {
        match $rows {
            1 => {
                const $R: usize = 1;
                $run
            }
            2 => {
                const $R: usize = 2;
                $run
            }
            3 => {
                const $R: usize = 3;
                $run
            }
            4 => {
                const $R: usize = 4;
                $run
            }
            5 => {
                const $R: usize = 5;
                $run
            }
            _ => {
                const $R: usize = 6;
                $run
            }
        }
    };
}

type Sums<const P: usize> = [[[f32; LANES]; P]];

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

    /// Weights decoded in registers: the whole piece is one tile for each panel.
    fn few_rows<L: Lanes, F: BlockFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        for panel in self.panels.clone() {
            let mut sums = [[[0.0; LANES]; 1]; FUSED_ROWS];
            let sums = &mut sums[..self.rows.len()];
            with_rows!(self.rows.len(), R => lanes.enter(IntegerTile::<Packed<F>, 1, R> {
                panels: [self.weight.panel(panel).as_ptr()],
                activations: &self.acts.blocks()[self.rows.start * blocks..],
                row_blocks: blocks,
                blocks,
                sums,
                format: PhantomData,
            }));
            self.finish(lanes, panel, sums);
        }
    }

    /// Weights taken apart chunk by chunk, for tiles of a few rows each.
    fn many_rows<L: Lanes, F: BlockFormat, U: PanelFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        let mut sums = [[[0.0; LANES]; PIECE_PANELS]; ROW_BLOCK];
        let sums = &mut sums[..self.rows.len()];
        let mut scratch = Scratch([const { MaybeUninit::uninit() }; SCRATCH_BYTES]);
        let (chunk_bytes, mut first) = (CHUNK_BLOCKS * unpacked_block_bytes::<U>(), 0);
        while first < blocks {
            let count = CHUNK_BLOCKS.min(blocks - first);
            let mut panels = [scratch.0.as_ptr().cast::<u8>(); PIECE_PANELS];
            for (i, panel) in self.panels.clone().enumerate() {
                let to = &mut scratch.0[i * chunk_bytes..(i + 1) * chunk_bytes];
                panels[i] = to.as_ptr().cast();
                let panel = self.weight.panel(panel);
                lanes.enter(Unpack::<F> { panel, first, blocks: count, to, format: PhantomData });
            }
            for tile in tiles(self.rows.len()) {
                let start = (self.rows.start + tile.start) * blocks + first;
                with_rows!(tile.len(), R => lanes.enter(IntegerTile::<U, PIECE_PANELS, R> {
                    panels,
                    activations: &self.acts.blocks()[start..],
                    row_blocks: blocks,
                    blocks: count,
                    sums: &mut sums[tile],
                    format: PhantomData,
                }));
            }
            first += count;
        }
        self.finish(lanes, self.panels.start, sums);
    }

    fn floats<L: Lanes, E: Element>(&self, lanes: L) {
        let cols = self.acts.cols();
        let mut sums = [[[0.0; LANES]; PIECE_PANELS]; ROW_BLOCK];
        let sums = &mut sums[..self.rows.len()];
        for first in (0..cols).step_by(CHUNK_INPUTS) {
            let inputs = CHUNK_INPUTS.min(cols - first);
            let panels = [self.panels.start, self.panels.end - 1]
                .map(|panel| &self.weight.panel(panel)[first * LANES * E::BYTES..]);
            for tile in tiles(self.rows.len()) {
                let start = (self.rows.start + tile.start) * cols + first;
                with_rows!(tile.len(), R => lanes.enter(FloatTile::<E, PIECE_PANELS, R> {
                    panels,
                    activations: &self.acts.floats()[start..],
                    row_elements: cols,
                    inputs,
                    sums: &mut sums[tile],
                    element: PhantomData,
                }));
            }
        }
        self.finish(lanes, self.panels.start, sums);
    }

    /// Writes the sums of up to `P` panels from `panel` on.
    fn finish<L: Lanes, const P: usize>(&self, lanes: L, panel: usize, sums: &mut Sums<P>) {
        let Output { values, features, bias, accumulate } = self.out;
        let first = panel * LANES;
        let end = (first + P * LANES).min(self.panels.end * LANES).min(features.end);
        for (row, sums) in self.rows.clone().zip(sums) {
            let start = row * features.len() + first - features.start;
            // SAFETY: promised to `new`.
            let out = unsafe { values.slice(start..start + end - first) };
            let bias = bias.map(|bias| &bias[first..end]);
            lanes.enter(Finish { sums: sums.as_flattened(), bias, accumulate: *accumulate, out });
        }
    }
}

/// Even cuts of `0..rows` into tiles of at most [`TILE_ROWS`].
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = rows.div_ceil(TILE_ROWS);
    (0..tiles).map(move |tile| rows * tile / tiles..rows * (tile + 1) / tiles)
}

/// Room for the larger of the unpacked formats.
const SCRATCH_BYTES: usize = PIECE_PANELS * CHUNK_BLOCKS * unpacked_block_bytes::<Unpacked<2, false>>();

#[repr(align(64))]
struct Scratch([MaybeUninit<u8>; SCRATCH_BYTES]);

/// The end of a row: bias, residual, store.
struct Finish<'a> {
    sums: &'a [f32],
    bias: Option<&'a [f32]>,
    accumulate: bool,
    out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for (i, (out, &sum)) in self.out.iter_mut().zip(self.sums).enumerate() {
            let sum = self.bias.map_or(sum, |bias| sum + bias[i]);
            *out = if self.accumulate { *out + sum } else { sum };
        }
    }
}
