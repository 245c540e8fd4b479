//! The two products of a block over a tile: scores, queries times keys; and sums, weights times values.
//!
//! Each comes in two forms, for a block of up to 32 rows and for few rows, [`Tiles::multiply`] and [`Tiles::multiply_row`]. They
//! add up in the same order, so that a row gets the same bits from both.

use super::{BLOCK_ROWS, Blocks, Line, query_lines, sum_lines};
use crate::{
    amx::{Ahead, Operand, ROW_BYTES, STEP_INPUTS, Sums, TILE_BYTES, TILE_ROWS, Tiles},
    attention::{TILE_TOKENS, Tile, tile::GROUP_TOKENS},
};

/// Pairs of tokens or dims that a tile of a right operand covers.
const STEP_PAIRS: usize = STEP_INPUTS / 2;

impl Blocks {
    /// Copies the keys of the last step along the dims, unless the dims fill all steps.
    pub(super) fn pad_keys(&mut self, tile: &Tile<'_>) {
        let (pairs, rest) = (self.shape.key_pairs(), self.shape.key_pairs() % STEP_PAIRS);
        if rest == 0 {
            return;
        }
        let groups = tile.keys.chunks_exact(pairs * 2 * GROUP_TOKENS);
        for (lines, keys) in self.last_keys.chunks_exact_mut(STEP_PAIRS).zip(groups) {
            for (line, keys) in
                lines.iter_mut().zip(keys[(pairs - rest) * 2 * GROUP_TOKENS..].chunks_exact(32))
            {
                for (slot, pair) in line.0.iter_mut().zip(keys.chunks_exact(2)) {
                    *slot = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                }
            }
            lines[rest..].fill(Line::ZERO);
        }
    }

    /// Scores of a block over a tile.
    ///
    /// # Safety
    /// The tile has the shape of `self`.
    pub(super) unsafe fn score(&mut self, unit: &Tiles, tile: &Tile<'_>, block: usize) {
        let pairs = self.shape.key_pairs();
        let (steps, rest) = (pairs / STEP_PAIRS, pairs % STEP_PAIRS);
        let lines = query_lines(self.shape);
        let queries: *const u8 = self.queries[block * lines..][..lines].as_ptr().cast();
        let (keys, last_keys) = (tile.keys.as_ptr().cast::<u8>(), self.last_keys.as_ptr().cast::<u8>());
        for group in (0..TILE_TOKENS / GROUP_TOKENS).step_by(2) {
            let sums = sums(&mut self.scores[group * BLOCK_ROWS..]);
            // SAFETY: a block's queries are two tiles for each step and two more if there is a rest; a group's keys are `pairs`
            // rows, which `steps` tiles do not exceed; the padded keys are a tile for each group, the scores two.
            unsafe {
                if steps > 0 {
                    let keys = keys.add(group * pairs * ROW_BYTES);
                    let keys = right(keys, ROW_BYTES, pairs * ROW_BYTES, TILE_BYTES);
                    unit.multiply(left(queries), keys, steps, sums, false);
                }
                if rest > 0 {
                    let queries = queries.add(steps * 2 * TILE_BYTES);
                    let keys = right(last_keys.add(group * TILE_BYTES), ROW_BYTES, TILE_BYTES, 0);
                    unit.multiply(left(queries), keys, 1, sums, steps > 0);
                }
            }
        }
    }

    /// [`Self::score`] for the only block, of at most [`TILE_ROWS`] rows.
    ///
    /// # Safety
    /// The tile has the shape of `self`.
    pub(super) unsafe fn score_few(&mut self, unit: &Tiles, tile: &Tile<'_>, mut ahead: Ahead<'_>) {
        let pairs = self.shape.key_pairs();
        let (steps, rest) = (pairs / STEP_PAIRS, pairs % STEP_PAIRS);
        let queries: *const u8 = self.queries.as_ptr().cast();
        let (keys, last_keys) = (tile.keys.as_ptr().cast::<u8>(), self.last_keys.as_ptr().cast::<u8>());
        let sums = sums(&mut self.scores);
        // SAFETY: as for `score`, of all four groups of tokens at once.
        unsafe {
            if steps > 0 {
                let keys = right(keys, ROW_BYTES, pairs * ROW_BYTES, TILE_BYTES);
                unit.multiply_row::<4>(left(queries), keys, steps, sums, false, &mut ahead);
            }
            if rest > 0 {
                let queries = queries.add(steps * 2 * TILE_BYTES);
                let keys = right(last_keys, ROW_BYTES, TILE_BYTES, 0);
                unit.multiply_row::<4>(left(queries), keys, 1, sums, steps > 0, &mut ahead);
            }
        }
    }

    /// The weights that multiply a tile's values, and those that multiply ones.
    fn weights_of(&self, tile: &Tile<'_>) -> [Operand; 2] {
        let of_values = if tile.scales.is_some() { &self.scaled } else { &self.weights };
        [of_values, &self.weights].map(|weights| left(weights.as_ptr().cast()))
    }

    /// Adds a tile's values and ones, by their weights, to a block's sums.
    ///
    /// # Safety
    /// The tile has the shape of `self`.
    pub(super) unsafe fn mix(&mut self, unit: &Tiles, tile: &Tile<'_>, block: usize) {
        let row_stride = self.shape.value_stride() * size_of::<u32>();
        let dim_tiles = self.shape.value_stride() / TILE_ROWS;
        let steps = tile.len.div_ceil(STEP_INPUTS);
        let lines = sum_lines(self.shape);
        let [weights, unscaled] = self.weights_of(tile);
        let block_sums = &mut self.sums[block * lines..][..lines];
        let values: *const u8 = tile.values.as_ptr().cast();
        // SAFETY: weights of either lot are two tiles for each step, of which there are 1 or 2; the values have `row_stride`
        // bytes for each pair of tokens, 16 pairs a step; a block's sums are two tiles for every 16 dims and two more, which add
        // up ones. One line of ones stands for all rows of a tile.
        unsafe {
            for dim_tile in (0..dim_tiles).step_by(2) {
                let values = values.add(dim_tile * ROW_BYTES);
                let values = right(values, row_stride, ROW_BYTES, STEP_PAIRS * row_stride);
                let sums = sums(&mut block_sums[dim_tile * BLOCK_ROWS..]);
                if dim_tile + 1 < dim_tiles {
                    unit.multiply(weights, values, steps, sums, true);
                } else {
                    unit.multiply_half(weights, values, steps, sums, true);
                }
            }
            let ones = right(self.ones.0.as_ptr().cast(), 0, 0, 0);
            unit.multiply_half(unscaled, ones, steps, sums(&mut block_sums[dim_tiles * BLOCK_ROWS..]), true);
        }
    }

    /// [`Self::mix`] for the only block, of at most [`TILE_ROWS`] rows.
    ///
    /// # Safety
    /// The tile has the shape of `self`.
    pub(super) unsafe fn mix_few(&mut self, unit: &Tiles, tile: &Tile<'_>, mut ahead: Ahead<'_>) {
        let row_stride = self.shape.value_stride() * size_of::<u32>();
        let dim_tiles = self.shape.value_stride() / TILE_ROWS;
        let steps = tile.len.div_ceil(STEP_INPUTS);
        let [weights, unscaled] = self.weights_of(tile);
        let values: *const u8 = tile.values.as_ptr().cast();
        // SAFETY: as for `mix`, up to four tiles of dims at once.
        unsafe {
            let mut dim_tile = 0;
            while dim_tile < dim_tiles {
                let values = values.add(dim_tile * ROW_BYTES);
                let values = right(values, row_stride, ROW_BYTES, STEP_PAIRS * row_stride);
                let sums = sums(&mut self.sums[dim_tile * BLOCK_ROWS..]);
                if dim_tiles - dim_tile >= 4 {
                    unit.multiply_row::<4>(weights, values, steps, sums, true, &mut ahead);
                    dim_tile += 4;
                } else {
                    unit.multiply_row::<1>(weights, values, steps, sums, true, &mut ahead);
                    dim_tile += 1;
                }
            }
            let ones = right(self.ones.0.as_ptr().cast(), 0, 0, 0);
            let sums = sums(&mut self.sums[dim_tiles * BLOCK_ROWS..]);
            unit.multiply_row::<1>(unscaled, ones, steps, sums, true, &mut ahead);
        }
    }
}

/// A left operand: pairs of tiles that follow each other.
fn left(first: *const u8) -> Operand {
    let tiles = [first, first.wrapping_add(TILE_BYTES)];
    Operand { tiles, row_stride: ROW_BYTES, step: 2 * TILE_BYTES }
}

/// A right operand whose second tile is `neighbour` bytes from the first.
fn right(first: *const u8, row_stride: usize, neighbour: usize, step: usize) -> Operand {
    Operand { tiles: [first, first.wrapping_add(neighbour)], row_stride, step }
}

/// Sums at `lines`: of 16 columns and both tiles of rows, then of 16 more columns.
fn sums(lines: &mut [Line]) -> Sums {
    let first: *mut f32 = lines.as_mut_ptr().cast();
    let tile = |index: usize| first.wrapping_add(index * TILE_BYTES / size_of::<f32>());
    Sums { tiles: [[tile(0), tile(2)], [tile(1), tile(3)]], row_stride: ROW_BYTES }
}
