//! Attention as a fold over tiles of cached rows.
//!
//! A [`Tile`] holds up to [`TILE_TOKENS`] cached tokens of one KV head. Folding it into the [`Partials`] of some query
//! rows updates, per row, the running maximum `m`, the sum of exponentials `l` and the weighted accumulator `acc`
//! (the online softmax of FlashAttention, Dao et al. 2022). Two partials merge by the log-sum-exp rule
//! ([`Partials::merge`]), so a sequence's tiles may be folded in pieces, on several threads, and joined afterwards.
//! No score matrix ever exists; scores live for one tile of 64 tokens.
//!
//! All query rows of a call share the KV head: with grouped-query attention they are the group's heads, in prefill
//! times the tokens of the chunk, and each K and V load serves up to four rows. Where there is a tile unit, [`attend`] sends all
//! rows through it (the `amx` module), up to 32 at a time, in the same terms.
//!
//! # Layout
//! Keys and values are bf16, stored so that no horizontal sum and no transposition is needed when they are read:
//! - keys `[group of 16 tokens][pair of dims][token][2]`: one 64-byte load gives a pair of dims of 16 tokens;
//! - values `[pair of tokens][dim][2]`: one 64-byte load gives 16 dims of two tokens.
//!
//! # Magnitudes
//! Rows may be stored as directions, with their lengths beside them ([`RowScales`]). A score is linear in the key and a sum in the
//! value, so the length of a key multiplies its score, and that of a value the weight that multiplies the value, but not the
//! weight that is summed up: a factor for each token and query row instead of one for each number, and no row is restored.
//!
//! # Determinism
//! A row's result depends on the row and the tiles only: the fold order is the tiles', each score is one chain over
//! the dims, each accumulator one chain over the tokens. Masked tokens contribute exact zeros. So a row computed
//! alone, in a batch or in any prefill chunk gives the same bits.

#[cfg(target_arch = "x86_64")]
mod amx;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod column_sums;
mod encoding;
#[cfg(target_arch = "x86_64")]
mod exp2;
mod items;
mod rotary;
mod scalar;
mod scores;
mod scratch;
mod stored;
mod tile;

pub use attend::{AttentionRows, AttentionShape, CachedTiles, attend};
pub use column_sums::{ColumnSums, ObservedRows, column_sums};
pub use encoding::{Affine, LowRank, codec};
pub use rotary::{PairLayout, Rotary, Turns};
pub use scores::scores;
pub use scratch::AttentionScratch;
#[cfg(target_arch = "x86_64")]
use stored::CodedTile;
pub use stored::{Codec, PlaneKind, StoredPlane, StoredTile, TileBuffer};
pub use tile::{Positions, RowScales, TILE_TOKENS, Tile, TileShape, from_bf16, to_bf16};

use crate::Isa;

/// Stands for "no token seen yet" in place of minus infinity, whose differences would be NaN.
const NOTHING_SEEN: f32 = -1e30;

/// Which cached tokens a query row may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Only tokens at or before the query's own position.
    pub causal: bool,
    /// Only the last so many positions, the query's own included.
    pub window: Option<u32>,
}

impl Reach {
    /// Every token up to the query's own.
    pub const CAUSAL: Self = Self { causal: true, window: None };
    /// Every token of the cache.
    pub const ALL: Self = Self { causal: false, window: None };

    /// Positions `first..=last` that a query at `position` sees.
    pub fn range(self, position: u32) -> (u32, u32) {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        (first, if self.causal { position } else { u32::MAX })
    }
}

/// Query rows that share one KV head.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// bf16 pairs `[rows, key_pairs]`, softmax scale already applied: see [`pack_query`].
    pub packed: &'a [u32],
    /// Position of each row.
    pub positions: &'a [u32],
    /// What each row may see.
    pub reach: Reach,
}

/// Running softmax state of some query rows.
pub struct Partials<'a> {
    /// Largest score so far, or another number that later scores do not exceed by much, `[rows]`.
    pub max: &'a mut [f32],
    /// Sum of `exp(score - max)`, `[rows]`.
    pub sum: &'a mut [f32],
    /// Sum of `exp(score - max) · value`, `[rows, value_stride]`.
    pub acc: &'a mut [f32],
}

impl Partials<'_> {
    /// Forgets everything: the state before the first tile.
    pub fn reset(&mut self) {
        self.max.fill(NOTHING_SEEN);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }

    /// Folds `other`, a later piece of the same rows, into this one.
    pub fn merge(&mut self, other: &Partials<'_>) {
        let stride = self.acc.len() / self.max.len().max(1);
        for row in 0..self.max.len() {
            if other.sum[row] == 0.0 {
                continue;
            }
            let max = self.max[row].max(other.max[row]);
            let (ours, theirs) = ((self.max[row] - max).exp(), (other.max[row] - max).exp());
            self.max[row] = max;
            self.sum[row] = self.sum[row] * ours + other.sum[row] * theirs;
            let range = row * stride..(row + 1) * stride;
            for (acc, &piece) in self.acc[range.clone()].iter_mut().zip(&other.acc[range]) {
                *acc = *acc * ours + piece * theirs;
            }
        }
    }

    /// Writes `acc / sum` of one row to `out` (`[value_dim]`); zeros if the row saw no token.
    pub fn finish(&self, row: usize, out: &mut [f32]) {
        let stride = self.acc.len() / self.max.len().max(1);
        let sum = self.sum[row];
        let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        for (out, &acc) in out.iter_mut().zip(&self.acc[row * stride..]) {
            *out = acc * scale;
        }
    }

    /// Log of the sum of exponentials of one row's scores; minus infinity if it saw no token.
    pub fn log_sum_exp(&self, row: usize) -> f32 {
        self.max[row] + self.sum[row].ln()
    }
}

/// Packs one query `[key_dim]`, times the softmax `scale`, into bf16 pairs `[key_pairs]`.
pub fn pack_query(query: &[f32], scale: f32, packed: &mut [u32]) {
    let round = |q: f32| u32::from(tile::to_bf16(q * scale));
    for (slot, pair) in packed.iter_mut().zip(query.chunks(2)) {
        *slot = round(pair[0]) | pair.get(1).map_or(0, |&odd| round(odd)) << 16;
    }
}

/// Folds `tile` into the partials of `queries`. What `ahead` has comes into the cache meanwhile: its first part while the keys
/// are gone over, the second with the values.
///
/// # Panics
/// If the slices do not have the shapes that `shape` and the number of query rows ask for.
pub fn fold(
    isa: Isa,
    shape: TileShape,
    queries: &Queries<'_>,
    tile: &Tile<'_>,
    ahead: [&[u8]; 2],
    partials: &mut Partials<'_>,
) {
    check_rows(shape, queries, partials);
    tile.check(shape);
    match isa {
        Isa::Scalar => scalar::fold(shape, queries, tile, partials),
        // SAFETY: an `Isa` above Scalar only exists on a processor that has it (`Isa::detect`), and the shapes
        // that the kernel's pointer arithmetic relies on were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::fold(shape, queries, tile, partials) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe {
            avx512::fold(shape, queries, tile, Default::default(), ahead, partials)
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => {
            let _ = ahead;
            scalar::fold(shape, queries, tile, partials)
        }
    }
}

/// Folds a tile some planes of which are in codes.
///
/// # Panics
/// As [`fold`]; and if the processor has no AVX-512.
#[cfg(target_arch = "x86_64")]
fn fold_coded(
    isa: Isa,
    shape: TileShape,
    queries: &Queries<'_>,
    coded: &CodedTile<'_>,
    ahead: [&[u8]; 2],
    partials: &mut Partials<'_>,
) {
    let CodedTile { tile, keys, values } = coded;
    check_rows(shape, queries, partials);
    assert!(isa >= Isa::Avx512);
    match keys {
        None => assert_eq!(tile.keys.len(), shape.key_len()),
        Some(keys) => assert_eq!([keys.pairs(), keys.lanes()], [shape.key_pairs(), TILE_TOKENS]),
    }
    match values {
        None => assert_eq!(tile.values.len(), shape.value_len()),
        Some(values) => assert_eq!([values.pairs(), values.lanes()], [TILE_TOKENS / 2, shape.value_stride()]),
    }
    tile.check_columns();
    // SAFETY: an `Isa` above Scalar only exists on a processor that has it, and all shapes were checked.
    unsafe { avx512::fold(shape, queries, tile, [*keys, *values], ahead, partials) }
}

fn check_rows(shape: TileShape, queries: &Queries<'_>, partials: &Partials<'_>) {
    let rows = queries.positions.len();
    assert_eq!(queries.packed.len(), rows * shape.key_pairs());
    assert_eq!(partials.max.len(), rows);
    assert_eq!(partials.sum.len(), rows);
    assert_eq!(partials.acc.len(), rows * shape.value_stride());
}
