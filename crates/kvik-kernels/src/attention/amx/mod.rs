//! Query rows by AMX: blocks of 32 against tiles of 64 cached tokens, or few rows alone.
//!
//! The cache's layouts are those of a right operand: a tile register takes 32 dims of 16 keys, or 16 dims of 32 values. Query
//! rows are packed as left operands. For each tile every block goes through a product (scores), a softmax in AVX-512
//! (weights) and a second product (sums), and the tile stays close for the next block. The three do not overlap: while
//! tile instructions are under way, the processors of 2023 run half of their 512-bit floating-point instructions, so that to
//! interleave them was measured to gain nothing.
//!
//! Up to 16 rows, as a decoded token has them, are bound by memory. Their tiles are configured for just so many rows (3 to 5 %
//! faster than for 16). While the keys are gone over, the values come into the first-level cache and the next tile's keys into the
//! second; with the values, the next tile's keys come into the first-level cache and its values into the second. The next tile may
//! be that of a later call: of the next span, or of the next sequence. Measured on two cores of a processor of 2023, whose caches
//! the weights of a layer pass through before each call, against fetching half a tile ahead within a span only:
//! - half a tile ahead, across spans: 6 % faster for heads of 64 at 8000 tokens, 3 % for heads of 256 at 16000, the same for
//!   16 sequences of 520;
//! - and half a tile more into the second-level cache: 8, 6 and 9 % faster than before; from the last-level cache, at 2048 tokens,
//!   the same, and what lies in the second-level cache already is read 30 % slower.
//!
//! What was measured there of fetching within a span:
//! - to fetch nothing: heads of 64 slower by 15 % from memory and 8 % from the last-level cache, heads of 256 the same from
//!   memory and 8 % faster from the last-level cache;
//! - to fetch a whole tile ahead into the first-level cache: the same for heads of 64, 3 % slower for heads of 256;
//! - to fetch into the second-level cache only: up to 6 % faster from memory, 9 % slower from the last-level cache;
//! - of the next keys, to fetch the first lines of each page alone: 3 % faster for heads of 256 from memory, otherwise slower by
//!   2 to 12 %.
//!
//! The sum of a row's weights is one more column of its sums, from a column of values that are all one: it costs no vector
//! instruction and adds up the rounded weights, so that they add up to one exactly. Where rows have lengths beside them, values
//! have weights of their own, with the lengths in them; the ones keep those without.
//!
//! # Determinism
//! All that is decided for a block (how many rows it has, skip the tile, mask it, move references) leaves the same bits in a row as if it had been
//! decided for the row alone: a weight of zero adds an exact zero, and a factor of one is not applied.

mod products;
mod softmax;

use std::arch::x86_64::*;

use self::softmax::{Scores, Weights};
use super::{NOTHING_SEEN, Partials, Reach, StoredTile, TILE_TOKENS, Tile, TileBuffer, TileShape};
use crate::amx::{Ahead, STEP_INPUTS, TILE_ROWS, Tiles};

/// Query rows of a block: two tiles, so that a tile of keys or values serves two products each time it is loaded.
pub(super) const BLOCK_ROWS: usize = 2 * TILE_ROWS;

/// A row of a tile: 16 `f32`, or 32 bf16.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Line {
    const ZERO: Self = Self([0; 16]);

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn floats(&self) -> __m512 {
        // SAFETY: 64 bytes of plain numbers, aligned.
        unsafe { _mm512_load_ps(self.0.as_ptr().cast()) }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn set(&mut self, numbers: __m512i) {
        // SAFETY: as for `floats`.
        unsafe { _mm512_store_si512(self.0.as_mut_ptr().cast(), numbers) }
    }
}

/// Rows of a block that are not in its sums.
#[derive(Clone, Copy)]
struct Rows {
    /// Rows in use; the others' numbers mean nothing.
    count: usize,
    positions: [u32; BLOCK_ROWS],
    /// Stand-ins for the running maxima, in units of log₂.
    references: [f32; BLOCK_ROWS],
    /// Smallest and largest of the first positions that the rows see.
    first: (u32, u32),
    /// Smallest and largest of the last positions that they see.
    last: (u32, u32),
}

impl Rows {
    const NONE: Self = Self {
        count: 0,
        positions: [0; BLOCK_ROWS],
        references: [NOTHING_SEEN; BLOCK_ROWS],
        first: (u32::MAX, 0),
        last: (u32::MAX, 0),
    };

    fn push(&mut self, position: u32, reach: Reach) {
        self.positions[self.count] = position;
        self.count += 1;
        let (first, last) = reach.range(position);
        self.first = (self.first.0.min(first), self.first.1.max(first));
        self.last = (self.last.0.min(last), self.last.1.max(last));
    }

    /// Whether some row may see a position of `span`.
    fn sees(&self, span: (u32, u32)) -> bool {
        span.0 <= self.last.1 && span.1 >= self.first.0
    }

    /// Whether every row sees all positions of `span`.
    fn see_all(&self, span: (u32, u32)) -> bool {
        span.0 >= self.first.1 && span.1 <= self.last.0
    }
}

/// Softmax state of many query rows of one KV head, and what folding needs.
pub(super) struct Blocks {
    shape: TileShape,
    reach: Reach,
    /// Left operands: `[block][step along the dims][32 rows]`.
    queries: Vec<Line>,
    rows: Vec<Rows>,
    /// Weighted sums of values and, last, of weights: `[block][16 dims, or the weights][32 rows]`.
    sums: Vec<Line>,
    /// Of one block over one tile.
    scores: Scores,
    /// As `scores`.
    weights: Weights,
    /// `weights` times the lengths of values, if the tile has lengths.
    scaled: Weights,
    /// The last step along the dims of a tile's keys, if the dims do not fill it: `[group][16 pairs]`.
    last_keys: [Line; TILE_TOKENS],
    /// Values that are all one.
    ones: Line,
}

impl Default for Blocks {
    fn default() -> Self {
        /// Two times 1.0 in bf16.
        const ONES: u32 = 0x3F80_3F80;
        Self {
            shape: TileShape { key_dim: 0, value_dim: 0 },
            reach: Reach::ALL,
            queries: Vec::new(),
            rows: Vec::new(),
            sums: Vec::new(),
            scores: [Line::ZERO; _],
            weights: [Line::ZERO; _],
            scaled: [Line::ZERO; _],
            last_keys: [Line::ZERO; _],
            ones: Line([ONES; _]),
        }
    }
}

impl Blocks {
    /// Makes room for `rows` query rows of heads of `shape`.
    pub(super) fn reserve(&mut self, rows: usize, shape: TileShape) {
        let blocks = rows.div_ceil(BLOCK_ROWS);
        let reserve = |lines: &mut Vec<Line>, len: usize| lines.reserve(len.saturating_sub(lines.len()));
        self.rows.reserve(blocks.saturating_sub(self.rows.len()));
        reserve(&mut self.queries, blocks * query_lines(shape));
        reserve(&mut self.sums, blocks * sum_lines(shape));
    }

    /// Takes on `rows` query rows, none of which is packed yet. [`Self::reset`] comes before tiles are folded.
    pub(super) fn begin(&mut self, rows: usize, shape: TileShape, reach: Reach) {
        let blocks = rows.div_ceil(BLOCK_ROWS);
        (self.shape, self.reach) = (shape, reach);
        self.rows.clear();
        self.rows.resize(blocks, Rows::NONE);
        self.queries.clear();
        self.queries.resize(blocks * query_lines(shape), Line::ZERO);
        self.sums.resize(blocks * sum_lines(shape), Line::ZERO);
    }

    /// Forgets all tiles: the state before the first.
    pub(super) fn reset(&mut self) {
        for (rows, sums) in self.rows.iter_mut().zip(self.sums.chunks_mut(sum_lines(self.shape))) {
            rows.references = [NOTHING_SEEN; _];
            for lines in sums.chunks_mut(BLOCK_ROWS) {
                lines[..rows.count].fill(Line::ZERO);
            }
        }
    }

    /// Packs the query `[key_dim]` of a row at `position`, times the softmax `scale`. Rows come in rising order.
    ///
    /// # Safety
    /// The processor has AMX and AVX-512 with BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn pack(&mut self, row: usize, position: u32, query: &[f32], scale: f32) {
        let (block, row) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        self.rows[block].push(position, self.reach);
        let lines = &mut self.queries[block * query_lines(self.shape)..][..query_lines(self.shape)];
        let scale = _mm512_set1_ps(scale * std::f32::consts::LOG2_E);
        for (line, dims) in lines[row..].iter_mut().step_by(BLOCK_ROWS).zip(query.chunks(STEP_INPUTS)) {
            let mask = low_bits(dims.len());
            // SAFETY: the masks select the `dims.len()` numbers of the slice; the pointer beyond is not used.
            let (low, high) = unsafe {
                let (low, high) = (dims.as_ptr(), dims.as_ptr().wrapping_add(16));
                (_mm512_maskz_loadu_ps(mask as u16, low), _mm512_maskz_loadu_ps((mask >> 16) as u16, high))
            };
            line.set(softmax::pack(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale)));
        }
    }

    /// Folds `tiles` into the state, in their order; those that are not stored in bf16 pass through `decoded`. The keys of
    /// `next`, which other rows or a later call fold, come into the cache with the last of them.
    ///
    /// # Panics
    /// If a tile does not have the shape that the rows began with.
    ///
    /// # Safety
    /// The processor has AMX and AVX-512 with BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn fold<'a>(
        &mut self,
        tiles: impl Iterator<Item = StoredTile<'a>>,
        next: Option<StoredTile<'a>>,
        decoded: &mut TileBuffer,
    ) {
        // A row's products do not depend on how many others there are: the tiles of few are configured for just so many.
        let few = matches!(self.rows[..], [Rows { count: 1..=TILE_ROWS, .. }]);
        let left_rows = if few { self.rows[0].count } else { TILE_ROWS };
        // SAFETY: the caller's promise.
        let unit = unsafe { Tiles::configure_few(left_rows) };
        const NOTHING: (&[u16], &[u16]) = (&[], &[]);
        let mut tiles = tiles.peekable();
        while let Some(tile) = tiles.next() {
            if let Some(next) = tiles.peek().or(next.as_ref()) {
                next.fetch();
            }
            let tile = tile.decode(self.shape, decoded);
            tile.check(self.shape);
            if tile.len == 0 {
                continue;
            }
            self.pad_keys(&tile);
            let span = tile.span();
            let (next_keys, next_values) =
                tiles.peek().or(next.as_ref()).filter(|_| few).map_or(NOTHING, StoredTile::plain);
            for block in 0..self.rows.len() {
                if !self.rows[block].sees(span) {
                    continue;
                }
                // SAFETY: the tile has the shape of `self`.
                unsafe {
                    if few {
                        self.score_few(&unit, &tile, Ahead::new(tile.values, next_keys));
                        self.weigh(&tile, span, block);
                        self.mix_few(&unit, &tile, Ahead::new(next_keys, next_values));
                    } else {
                        self.score(&unit, &tile, block);
                        self.weigh(&tile, span, block);
                        self.mix(&unit, &tile, block);
                    }
                }
            }
        }
    }

    /// Weights of a block over a tile, from the scores.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn weigh(&mut self, tile: &Tile<'_>, span: (u32, u32), block: usize) {
        let plain = tile.bias.is_none() && tile.scales.is_none();
        let whole = tile.len == TILE_TOKENS && plain && self.rows[block].see_all(span);
        let Rows { count, positions, references, .. } = &mut self.rows[block];
        let references = &mut references[..*count];
        if whole && softmax::weigh_whole(&self.scores, references, &mut self.weights) {
            return;
        }
        let mut visible = [0; BLOCK_ROWS];
        for row in 0..*count {
            visible[row] = tile.visible(self.reach, positions[row]);
        }
        let factors =
            softmax::weigh(&self.scores, &visible, tile, references, &mut self.weights, &mut self.scaled);
        if let Some(factors) = factors {
            let lines = sum_lines(self.shape);
            softmax::rescale(&mut self.sums[block * lines..][..lines], &factors);
        }
    }

    /// Writes a row's result, weighted sums of values over the sum of weights, to `out` (`[value_dim]`); zeros if it saw no
    /// token.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn finish(&self, row: usize, out: &mut [f32]) {
        let sum = self.sum(row);
        self.scaled(row, if sum > 0.0 { 1.0 / sum } else { 0.0 }, out);
    }

    /// Writes a row's state to `row` of `partials`.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn export(&self, row: usize, partials: &mut Partials<'_>) {
        let stride = self.shape.value_stride();
        let reference = self.rows[row / BLOCK_ROWS].references[row % BLOCK_ROWS];
        partials.max[row] = (reference * std::f32::consts::LN_2).max(NOTHING_SEEN);
        partials.sum[row] = self.sum(row);
        self.scaled(row, 1.0, &mut partials.acc[row * stride..(row + 1) * stride]);
    }

    /// Log of the sum of exponentials of a row's scores; minus infinity if it saw no token.
    pub(super) fn log_sum_exp(&self, row: usize) -> f32 {
        let reference = self.rows[row / BLOCK_ROWS].references[row % BLOCK_ROWS];
        (reference * std::f32::consts::LN_2).max(NOTHING_SEEN) + self.sum(row).ln()
    }

    /// The state of a row: a line for every 16 dims, then one whose numbers are all the sum of weights.
    fn lines(&self, row: usize) -> impl Iterator<Item = &Line> {
        let lines = sum_lines(self.shape);
        self.sums[row / BLOCK_ROWS * lines..][..lines][row % BLOCK_ROWS..].iter().step_by(BLOCK_ROWS)
    }

    fn sum(&self, row: usize) -> f32 {
        self.lines(row).last().map_or(0.0, |line| f32::from_bits(line.0[0]))
    }

    /// A row's weighted sums of values times `scale`. A negative zero, which only numbers below the normal ones leave behind,
    /// becomes zero.
    #[target_feature(enable = "avx512f")]
    fn scaled(&self, row: usize, scale: f32, out: &mut [f32]) {
        let (scale, zero) = (_mm512_set1_ps(scale), _mm512_setzero_ps());
        for (out, line) in out.chunks_mut(TILE_ROWS).zip(self.lines(row)) {
            let mask = low_bits(out.len()) as u16;
            // SAFETY: the mask selects the numbers of the slice.
            unsafe {
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_fmadd_ps(line.floats(), scale, zero))
            };
        }
    }
}

/// Lines of a block's queries.
fn query_lines(shape: TileShape) -> usize {
    shape.key_dim.div_ceil(STEP_INPUTS) * BLOCK_ROWS
}

/// Lines of a block's sums.
fn sum_lines(shape: TileShape) -> usize {
    (shape.value_stride() / TILE_ROWS + 1) * BLOCK_ROWS
}

/// The lower `count` bits, at most 32.
fn low_bits(count: usize) -> u32 {
    ((1u64 << count) - 1) as u32
}
