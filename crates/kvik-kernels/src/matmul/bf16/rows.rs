//! Rows of activations in bf16, in tiles of 16 rows by 32 inputs.
//!
//! A tile is what the tile unit of AMX takes as its left operand, contiguous, so that rows of any length neither collide in a
//! cache nor straddle pages; the dot products of AVX-512 read the same tiles pair by pair.

use super::super::lanes::{Kernel, LANES, Lanes};
use crate::{ThreadPool, disjoint::Disjoint};
use std::ops::Range;

/// Rows of a tile.
pub(in crate::matmul) const TILE_ROWS: usize = 16;
/// Inputs of a tile.
pub(in crate::matmul) const STEP_INPUTS: usize = 32;

/// `[rows][inputs]` of bf16.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::matmul) struct RowTile([[u16; STEP_INPUTS]; TILE_ROWS]);

impl RowTile {
    /// Where row `row` begins; the rows below follow.
    pub(super) fn row(&self, row: usize) -> *const u16 {
        self.0[row..].as_ptr().cast()
    }
}

/// A workspace that keeps its memory.
#[derive(Default)]
pub(in crate::matmul) struct Bf16Rows {
    /// `[⌈rows / 16⌉][steps]`
    tiles: Vec<RowTile>,
    steps: usize,
}

impl Bf16Rows {
    /// Sets room for `rows` rows of `cols` inputs aside; what it held is lost.
    pub(in crate::matmul) fn resize(&mut self, rows: usize, cols: usize) {
        self.steps = cols.div_ceil(STEP_INPUTS);
        let tiles = rows.div_ceil(TILE_ROWS) * self.steps;
        if self.tiles.len() < tiles {
            self.tiles.resize(tiles, RowTile([[0; STEP_INPUTS]; TILE_ROWS]));
        }
    }

    /// Tiles along the inputs.
    pub(in crate::matmul) fn steps(&self) -> usize {
        self.steps
    }

    /// The tiles of rows `16 · tile ..`, one for each step.
    pub(in crate::matmul) fn row_tile(&self, tile: usize) -> &[RowTile] {
        &self.tiles[tile * self.steps..(tile + 1) * self.steps]
    }

    /// Rounds rows `rows` of `x`, `[_, cols]`, into their places.
    pub(in crate::matmul) fn fill<L: Lanes + Sync>(
        &mut self,
        lanes: L,
        pool: &ThreadPool,
        x: &[f32],
        cols: usize,
        rows: Range<usize>,
    ) {
        let steps = self.steps;
        let tiles = Disjoint::new(&mut self.tiles);
        let row_tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
        pool.for_each_piece(row_tiles.len(), 2, |piece| {
            for tile in piece.map(|index| row_tiles.start + index) {
                let rows = rows.start.max(tile * TILE_ROWS)..rows.end.min((tile + 1) * TILE_ROWS);
                // SAFETY: each row tile is handed out once.
                let tiles = unsafe { tiles.slice(tile * steps..(tile + 1) * steps) };
                lanes.enter(Round {
                    x: &x[rows.start * cols..rows.end * cols],
                    cols,
                    first: rows.start % TILE_ROWS,
                    tiles,
                });
            }
        });
    }
}

/// Rounds a few rows into a row of tiles, from place `first` on.
struct Round<'a> {
    x: &'a [f32],
    cols: usize,
    first: usize,
    tiles: &'a mut [RowTile],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        for (place, row) in (self.first..).zip(self.x.chunks_exact(self.cols.max(1))) {
            for (inputs, tile) in row.chunks(STEP_INPUTS).zip(&mut *self.tiles) {
                let mut padded = [0.0; STEP_INPUTS];
                let inputs = if inputs.len() == STEP_INPUTS {
                    inputs
                } else {
                    padded[..inputs.len()].copy_from_slice(inputs);
                    &padded
                };
                // SAFETY: 32 inputs are read, and 32 places of the tile's row written.
                unsafe {
                    let (low, high) = (lanes.load(inputs.as_ptr()), lanes.load(inputs[LANES..].as_ptr()));
                    lanes.store_bf16([low, high], tile.0[place].as_mut_ptr());
                }
            }
        }
    }
}
