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
/// Steps taken apart at a time. Two panels of them, and the rows of activations that pass by until the panels are used again, share a
/// first-level cache of 48 KiB; with more, the panels would be evicted before each use (measured: 9 steps 2.07 TFLOP/s, 18 steps
/// 1.92, 6 steps 1.81, because the sums then come and go more often).
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
    let mut sums = [const { MaybeUninit::<[RowSums; PAIR_ROWS]>::uninit() }; ROW_BLOCK / PAIR_ROWS];
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
            #[cfg(target_arch = "x86_64")]
            if let Some(unit) = &unit {
                multiply_tiles(unit, acts, two.clone(), range.clone(), weights, sums, chunk > 0);
            } else {
                multiply_vectors(lanes, acts, two.clone(), range.clone(), weights, sums, chunk > 0);
            }
            #[cfg(not(target_arch = "x86_64"))]
            multiply_vectors(lanes, acts, two.clone(), range.clone(), weights, sums, chunk > 0);
            if chunk + 1 == chunks {
                // SAFETY: the chunks, of which this is the last, wrote the sums of all rows of these tiles.
                let sums = unsafe { sums.assume_init_ref() };
                let base = two.start * TILE_ROWS;
                let rows = rows.start.max(base)..rows.end.min(two.end * TILE_ROWS);
                let sums = &sums[rows.start - base..rows.end - base];
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

/// One or two row tiles through the tile unit.
#[cfg(target_arch = "x86_64")]
fn multiply_tiles(
    unit: &crate::amx::Tiles,
    acts: &Bf16Rows,
    tiles: Range<usize>,
    steps: Range<usize>,
    weights: [*const u8; 2],
    sums: &mut MaybeUninit<[RowSums; PAIR_ROWS]>,
    accumulate: bool,
) {
    use crate::amx::{Operand, ROW_BYTES, Sums, TILE_BYTES};
    let left =
        [tiles.start, tiles.end - 1].map(|tile| acts.row_tile(tile)[steps.clone()].as_ptr().cast::<u8>());
    let sums = sums.as_mut_ptr().cast::<f32>();
    let sum = |row: usize, panel: usize| sums.wrapping_add((row * PIECE_PANELS + panel) * LANES);
    let left = Operand { tiles: left, row_stride: ROW_BYTES, step: TILE_BYTES };
    let right = Operand { tiles: weights, row_stride: ROW_BYTES, step: TILE_BYTES };
    let sums = Sums {
        tiles: [[sum(0, 0), sum(0, 1)], [sum(TILE_ROWS, 0), sum(TILE_ROWS, 1)]],
        row_stride: size_of::<RowSums>(),
    };
    // SAFETY: the row tiles were sliced to these steps, and so much of both panels was taken apart; `sums` has 32 rows.
    unsafe { unit.multiply(left, right, steps.len(), sums, accumulate) };
}

/// One or two row tiles through the vector unit.
fn multiply_vectors<L: Lanes>(
    lanes: L,
    acts: &Bf16Rows,
    tiles: Range<usize>,
    steps: Range<usize>,
    weights: [*const u8; 2],
    sums: &mut MaybeUninit<[RowSums; PAIR_ROWS]>,
    accumulate: bool,
) {
    let sums = sums.as_mut_ptr().cast::<f32>();
    for (index, tile) in tiles.enumerate() {
        let rows = &acts.row_tile(tile)[steps.clone()];
        for first in (0..TILE_ROWS).step_by(VectorTile::ROWS) {
            let sums = sums.wrapping_add((index * TILE_ROWS + first) * PIECE_PANELS * LANES);
            lanes.enter(VectorTile { rows, first, weights, sums, accumulate });
        }
    }
}
