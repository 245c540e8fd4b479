//! Products in bf16, for prompts on processors that multiply bf16 faster than two planes of integers.
//!
//! Both operands are rounded to bf16 (8 bits of mantissa, so 0.1 % of each number in the mean square), sums are in `f32`. On a
//! language model that costs a divergence of 0.0001 to 0.0002 from its exact next-token distribution: more than the 15 bits that
//! decoding has, far less than activations in 8 bits with a shared scale.
//!
//! A piece takes a few steps of two panels apart into the first-level cache and runs all of its rows over them: 32 rows at a time
//! through the tiles of AMX, or 8 through the dot products of the vector unit. A sum takes its inputs in ascending steps of 32, of
//! which the order is the instruction's; it sees no other row.

mod rows;
mod tile;
mod unpack;

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use rows::RowTile;
pub(super) use rows::{Bf16Rows, TILE_ROWS};
use tile::VectorTile;
use unpack::{UnpackBf16, UnpackBlocks, WEIGHT_TILE_BYTES};

use super::{
    lanes::{LANES, Lanes},
    output::{Output, RowSums},
    piece::{PIECE_PANELS, PanelPair},
};
use crate::{
    Isa,
    quant::{TensorType, block_format::with_block_format},
};

/// Rows of the tiles of a piece at most: over so many the work of taking weights apart is spread.
pub(super) const ROW_BLOCK: usize = 512;
/// Steps taken apart at a time. Two panels of them, and the rows of activations that pass by until the panels are used again,
/// share a first-level cache of 48 KiB; with more, the panels would be evicted before each use, with fewer the sums come and go
/// more often (a loop of tile products of 576 inputs alone: 2.07 TFLOP/s with 9 steps, 1.92 with 18, 1.81 with 6).
const CHUNK_STEPS: usize = 12;
/// Rows that go through the tile unit together.
const PAIR_ROWS: usize = 2 * TILE_ROWS;

/// Whether weights of this type are multiplied in bf16 where prompts are: types that say more than bf16 are not.
pub(super) fn takes(ty: TensorType) -> bool {
    !matches!(ty, TensorType::F32 | TensorType::F16)
}

/// Taken-apart weights of a chunk.
#[repr(align(64))]
struct WeightScratch([[MaybeUninit<u8>; CHUNK_STEPS * WEIGHT_TILE_BYTES]; PIECE_PANELS]);

/// Rows `rows` (at most [`ROW_BLOCK`]) of the activations times a pair of panels.
#[inline(never)]
pub(super) fn multiply<L: Lanes>(
    isa: Isa,
    lanes: L,
    acts: &Bf16Rows,
    pair: PanelPair<'_>,
    rows: Range<usize>,
    out: &Output<'_>,
) {
    let steps = acts.steps();
    let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
    // A single chunk needs the sums of no more rows than go together.
    let mut sums = [const { [const { MaybeUninit::<RowSums>::uninit() }; PAIR_ROWS] }; ROW_BLOCK / PAIR_ROWS];
    let mut scratch = WeightScratch([const { [const { MaybeUninit::uninit() }; _] }; PIECE_PANELS]);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the set was found available before the piece was made.
    let unit = (isa == Isa::Amx).then(|| unsafe { crate::amx::Tiles::configure() });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;

    let chunks = steps.div_ceil(CHUNK_STEPS);
    for chunk in 0..chunks {
        let range = steps * chunk / chunks..steps * (chunk + 1) / chunks;
        for (panel, to) in pair.each().into_iter().zip(&mut scratch.0) {
            take_apart(lanes, &pair, panel, range.clone(), to);
        }
        let weights = scratch.0.each_ref().map(|panel| panel.as_ptr().cast::<u8>());
        for (index, first) in tiles.clone().step_by(2).enumerate() {
            let two = first..tiles.end.min(first + 2);
            let sums = &mut sums[if chunks == 1 { 0 } else { index }];
            let accumulate = chunk > 0;
            let product =
                RowPair { acts, tiles: two.clone(), steps: range.clone(), weights, sums, accumulate };
            #[cfg(target_arch = "x86_64")]
            match &unit {
                Some(unit) => product.through_tiles(unit),
                None => product.through_vectors(lanes),
            }
            #[cfg(not(target_arch = "x86_64"))]
            product.through_vectors(lanes);
            if chunk + 1 == chunks {
                let base = two.start * TILE_ROWS;
                let rows = rows.start.max(base)..rows.end.min(two.end * TILE_ROWS);
                // SAFETY: the chunks, of which this is the last, wrote the sums of all rows of these tiles.
                let sums = unsafe { sums[rows.start - base..rows.end - base].assume_init_ref() };
                out.finish(lanes, pair.first, pair.features, rows, sums);
            }
        }
    }
}

fn take_apart<L: Lanes>(
    lanes: L,
    pair: &PanelPair<'_>,
    panel: &[u8],
    steps: Range<usize>,
    to: &mut [MaybeUninit<u8>],
) {
    let (first, steps) = (steps.start, steps.len());
    with_block_format!(
        pair.weight().ty(),
        F => lanes.enter(UnpackBlocks::<F> { panel, ahead: pair.ahead, first, steps, to, format: PhantomData }),
        _ => lanes.enter(UnpackBf16 { panel, inputs: pair.weight().in_features(), first, steps, to })
    );
}

/// One or two row tiles times a chunk of both panels.
struct RowPair<'a> {
    acts: &'a Bf16Rows,
    tiles: Range<usize>,
    steps: Range<usize>,
    /// Of each panel, the tiles of these steps.
    weights: [*const u8; PIECE_PANELS],
    /// Of all rows of the tiles; initialised if they are accumulated.
    sums: &'a mut [MaybeUninit<RowSums>; PAIR_ROWS],
    accumulate: bool,
}

impl RowPair<'_> {
    fn rows(&self, tile: usize) -> &[RowTile] {
        &self.acts.row_tile(tile)[self.steps.clone()]
    }

    /// Where the sums of a row with a panel are.
    fn sums(&mut self, row: usize, panel: usize) -> *mut f32 {
        self.sums.as_mut_ptr().cast::<f32>().wrapping_add((row * PIECE_PANELS + panel) * LANES)
    }

    #[cfg(target_arch = "x86_64")]
    fn through_tiles(mut self, unit: &crate::amx::Tiles) {
        use crate::amx::{Operand, ROW_BYTES, Sums, TILE_BYTES};
        // A single tile is multiplied twice; nobody reads the second result.
        let left = [self.tiles.start, self.tiles.end - 1].map(|tile| self.rows(tile).as_ptr().cast::<u8>());
        let left = Operand { tiles: left, row_stride: ROW_BYTES, step: TILE_BYTES };
        let right = Operand { tiles: self.weights, row_stride: ROW_BYTES, step: TILE_BYTES };
        let sums = [0, TILE_ROWS].map(|row| [self.sums(row, 0), self.sums(row, 1)]);
        let sums = Sums { tiles: sums, row_stride: size_of::<RowSums>() };
        // SAFETY: the row tiles were sliced to these steps, and so much of both panels was taken apart; there are sums of 32 rows.
        unsafe { unit.multiply(left, right, self.steps.len(), sums, self.accumulate) };
    }

    fn through_vectors<L: Lanes>(mut self, lanes: L) {
        for (index, tile) in self.tiles.clone().enumerate() {
            for first in (0..TILE_ROWS).step_by(VectorTile::ROWS) {
                let sums = self.sums(index * TILE_ROWS + first, 0);
                let (rows, weights, accumulate) = (self.rows(tile), self.weights, self.accumulate);
                lanes.enter(VectorTile { rows, first, weights, sums, accumulate });
            }
        }
    }
}
