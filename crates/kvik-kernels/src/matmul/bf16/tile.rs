//! The inner loop on the vector unit: 8 rows by two panels, a pair of inputs at a time.

use super::{
    super::{
        lanes::{Kernel, LANES, Lanes},
        piece::PIECE_PANELS,
    },
    rows::{RowTile, STEP_INPUTS},
};

/// `sums[r][p] = [sums[r][p] +] Σ rows[first + r] · weights[p]`
pub(super) struct VectorTile<'a> {
    pub(super) rows: &'a [RowTile],
    /// First row of the tiles to take.
    pub(super) first: usize,
    /// A tile of weights for each tile of rows.
    pub(super) weights: [*const u8; PIECE_PANELS],
    /// `[8][panels][16]`, uninitialised unless they are accumulated.
    pub(super) sums: *mut f32,
    pub(super) accumulate: bool,
}

impl VectorTile<'_> {
    /// With two panels 16 sums: enough independent chains for the latency of a dot product at two a cycle.
    pub(super) const ROWS: usize = 8;
}

impl Kernel for VectorTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        const R: usize = VectorTile::ROWS;
        const PAIRS: usize = STEP_INPUTS / 2;
        let at = |r: usize, p: usize| self.sums.wrapping_add((r * PIECE_PANELS + p) * LANES);
        // SAFETY: `sums` has room for 8 rows, initialised if they are accumulated; a tile has 16 rows of 16 pairs, and of
        // those of the weights there are as many as of the rows.
        unsafe {
            let mut sums = [[lanes.splat(0.0); PIECE_PANELS]; R];
            if self.accumulate {
                for r in 0..R {
                    for p in 0..PIECE_PANELS {
                        sums[r][p] = lanes.load(at(r, p));
                    }
                }
            }
            for (step, tile) in self.rows.iter().enumerate() {
                let activations = tile.row(self.first).cast::<i32>();
                for pair in 0..PAIRS {
                    let mut weights = [lanes.load_codes(self.weights[0]); PIECE_PANELS];
                    for p in 0..PIECE_PANELS {
                        weights[p] = lanes.load_codes(self.weights[p].add((step * PAIRS + pair) * 4 * LANES));
                    }
                    for r in 0..R {
                        let activation = *activations.add(r * PAIRS + pair);
                        for p in 0..PIECE_PANELS {
                            sums[r][p] = lanes.dot_bf16(sums[r][p], weights[p], activation);
                        }
                    }
                }
            }
            for r in 0..R {
                for p in 0..PIECE_PANELS {
                    lanes.store(sums[r][p], at(r, p));
                }
            }
        }
    }
}
