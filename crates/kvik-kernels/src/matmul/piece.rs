//! One piece of a product, computed by one thread: up to two panels by up to [`ROW_BLOCK`] rows.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use super::{
    Activations, PackedMatrix, bf16, even_cuts,
    float_tile::{Bf16, Element, F16, F32, FloatTile},
    integer_tile::{IntegerTile, Unpack, unpacked_block_bytes},
    lanes::{LANES, Lanes},
    output::{Output, RowSums},
    panel::{Packed, PanelFormat, Unpacked},
};
use crate::{
    Isa,
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

/// Two panels that are multiplied together: neighbours in a matrix, or a gate's and that of what it gates.
#[derive(Clone, Copy)]
pub(super) struct PanelPair<'a> {
    /// The panels' matrices, of one shape and type. A pair of one panel names it twice: it is computed twice then, and the second
    /// result dropped.
    pub(super) weights: [&'a PackedMatrix; PIECE_PANELS],
    /// Their indices.
    pub(super) panels: [usize; PIECE_PANELS],
    /// Nothing of the second panel is wanted.
    pub(super) is_single: bool,
    /// First feature of the result, and how many there are (fewer at the end of a matrix).
    pub(super) first: usize,
    pub(super) features: usize,
    /// How many panels further this thread most likely goes on.
    pub(super) ahead: usize,
}

impl PanelPair<'_> {
    pub(super) fn each(&self) -> [&[u8]; PIECE_PANELS] {
        std::array::from_fn(|i| self.weights[i].panel(self.panels[i]))
    }

    pub(super) fn weight(&self) -> &PackedMatrix {
        self.weights[0]
    }
}

/// Rows `rows` of the activations times a pair of panels.
pub(super) struct Piece<'a> {
    acts: &'a Activations,
    pair: PanelPair<'a>,
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
        pair: PanelPair<'a>,
        rows: Range<usize>,
        out: &'a Output<'a>,
    ) -> Self {
        Self { acts, pair, rows, out }
    }

    /// As [`Self::multiply`], in bf16 where the weights are multiplied so.
    pub(super) fn multiply_prompt<L: Lanes>(self, isa: Isa, lanes: L) {
        if bf16::takes(self.pair.weight().ty()) {
            return bf16::multiply(isa, lanes, self.acts.bf16_rows(), self.pair, self.rows, self.out);
        }
        for rows in even_cuts(self.rows.clone(), ROW_BLOCK) {
            Self { rows, ..self }.multiply(lanes);
        }
    }

    pub(super) fn multiply<L: Lanes>(self, lanes: L) {
        with_block_format!(
            self.pair.weight().ty(),
            F => if self.rows.len() <= FUSED_ROWS {
                self.few_rows::<L, F>(lanes);
            } else {
                match F::SCALES {
                    Scales::Single => self.many_rows::<L, F, Unpacked<1, false>>(lanes),
                    Scales::NestedHalves => self.many_rows::<L, F, Unpacked<2, false>>(lanes),
                    Scales::WithMin | Scales::NestedWithMin => self.many_rows::<L, F, Unpacked<1, true>>(lanes),
                }
            },
            _ => match self.pair.weight().ty() {
                TensorType::F32 => self.floats::<L, F32>(lanes),
                TensorType::F16 => self.floats::<L, F16>(lanes),
                _ => self.floats::<L, Bf16>(lanes),
            }
        );
    }

    /// Weights decoded in registers, again for each tile. Never inlined, nor its siblings: a frame that holds the scratch of all
    /// would be walked page by page at each call, and in decoding a piece takes less than a microsecond.
    #[inline(never)]
    fn few_rows<L: Lanes, F: BlockFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        let mut sums = SumsScratch::<FUSED_ROWS>::new();
        let sums = sums.zeroed(self.rows.len());
        for (i, panel) in self.pair.each().into_iter().enumerate() {
            for tile in even_cuts(0..self.rows.len(), FUSED_TILE_ROWS) {
                let activations = &self.acts.blocks()[(self.rows.start + tile.start) * blocks..];
                let sums = &mut sums[tile];
                with_rows!(sums.len(), [1 2 3 4 5 6], R => {
                    let mut of_panel = [[[0.0; LANES]; 1]; R];
                    lanes.enter(IntegerTile::<Packed<F>, 1, R> {
                        panels: [panel.as_ptr()],
                        activations,
                        row_blocks: blocks,
                        blocks,
                        sums: &mut of_panel,
                        format: PhantomData,
                    });
                    for r in 0..R {
                        sums[r][i] = of_panel[r][0];
                    }
                });
            }
            if self.pair.is_single {
                break;
            }
        }
        self.finish(lanes, self.rows.clone(), sums);
    }

    fn finish<L: Lanes>(&self, lanes: L, rows: Range<usize>, sums: &[RowSums]) {
        self.out.finish(lanes, self.pair.first, self.pair.features, rows, sums);
    }

    /// Weights taken apart chunk by chunk, for many tiles.
    #[inline(never)]
    fn many_rows<L: Lanes, F: BlockFormat, U: PanelFormat>(&self, lanes: L) {
        let blocks = self.acts.cols() / BLOCK;
        let mut sums = SumsScratch::<ROW_BLOCK>::new();
        let sums = sums.zeroed(self.rows.len());
        let mut scratch = UnpackScratch([const { MaybeUninit::uninit() }; UNPACK_BYTES]);
        let chunk_bytes = CHUNK_BLOCKS * unpacked_block_bytes::<U>();
        for first in (0..blocks).step_by(CHUNK_BLOCKS) {
            let count = CHUNK_BLOCKS.min(blocks - first);
            for (i, panel) in self.pair.each().into_iter().enumerate() {
                let to = &mut scratch.0[i * chunk_bytes..(i + 1) * chunk_bytes];
                lanes.enter(Unpack::<F> {
                    panel,
                    ahead: self.pair.ahead,
                    first,
                    blocks: count,
                    to,
                    format: PhantomData,
                });
            }
            let start = scratch.0.as_ptr().cast::<u8>();
            let panels = [start, start.wrapping_add(chunk_bytes)];
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
                    self.finish(lanes, tile, sums);
                }
            }
        }
    }

    #[inline(never)]
    fn floats<L: Lanes, E: Element>(&self, lanes: L) {
        let cols = self.acts.cols();
        let mut sums = SumsScratch::<ROW_BLOCK>::new();
        let sums = sums.zeroed(self.rows.len());
        for first in (0..cols).step_by(CHUNK_INPUTS) {
            let inputs = CHUNK_INPUTS.min(cols - first);
            let panels = self.pair.each().map(|panel| &panel[first * LANES * E::BYTES..]);
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
                    self.finish(lanes, tile, sums);
                }
            }
        }
    }
}

/// The sums of a piece of at most `ROWS` rows, `[rows][panels][16]`, while its chunks are added up.
struct SumsScratch<const ROWS: usize>([MaybeUninit<RowSums>; ROWS]);

impl<const ROWS: usize> SumsScratch<ROWS> {
    fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; ROWS])
    }

    fn zeroed(&mut self, rows: usize) -> &mut [RowSums] {
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
