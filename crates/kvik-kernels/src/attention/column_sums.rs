//! How much attention each cached token got: the column sums of the probabilities of chosen query rows.
//!
//! Attention itself keeps no scores. With the log-sum-exp that it left for each row, a second pass over the tiles turns scores
//! into probabilities, `exp(score - log_sum_exp)`, and adds them up by column; scores live for one tile, as in the fold. This
//! is the evidence that published scorers rank tokens by: of the last rows of a prompt (SnapKV), of all rows (H2O), or of the
//! one row of a decoded token.
//!
//! Rows are summed in their order for each tile, so the sums do not depend on the number of threads.

use super::{
    AttentionShape, CachedTiles, Queries, TILE_TOKENS, Tile, TileBuffer, TileShape, pack_query, scalar,
};
use crate::{Isa, ThreadPool, disjoint::Disjoint};

/// Query rows whose probabilities are wanted.
#[derive(Clone, Copy)]
pub struct ObservedRows<'a> {
    /// `[rows, heads, key_dim]`, rotated.
    pub queries: &'a [f32],
    /// `[rows]`.
    pub positions: &'a [u32],
    /// `[rows, heads]`, as attention left it.
    pub log_sum_exp: &'a [f32],
}

/// Where column sums go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnSums {
    /// Summed over the query heads that share a KV head: `[kv_heads, tiles, TILE_TOKENS]`.
    Group,
    /// For each query head: `[heads, tiles, TILE_TOKENS]`.
    EachHead,
}

/// The column sums of `rows` over the tiles of `sequence`; `tiles` is the number of the head that has most. Entries for
/// tokens that no row sees, and for slots without a token, are zero.
///
/// # Panics
/// If the rows do not fit `shape`, or a head has more than `tiles` tiles.
#[expect(clippy::too_many_arguments, reason = "the same as attend, and where the sums go")]
pub fn column_sums(
    pool: &ThreadPool,
    isa: Isa,
    shape: &AttentionShape,
    rows: ObservedRows<'_>,
    cache: &dyn CachedTiles,
    sequence: usize,
    tiles: usize,
    sums: ColumnSums,
) -> Vec<f32> {
    let ObservedRows { queries, positions, log_sum_exp } = rows;
    let (count, group, pairs) = (positions.len(), shape.group(), shape.tile.key_pairs());
    assert_eq!(queries.len(), count * shape.heads * shape.tile.key_dim);
    assert_eq!(log_sum_exp.len(), count * shape.heads);

    // Queries head by head, each head's rows side by side.
    let mut packed = vec![0u32; shape.heads * count * pairs];
    let mut references = vec![0f32; shape.heads * count];
    for (head, (packed, references)) in packed
        .chunks_exact_mut((count * pairs).max(1))
        .zip(references.chunks_exact_mut(count.max(1)))
        .enumerate()
    {
        for (row, (packed, reference)) in packed.chunks_exact_mut(pairs).zip(references).enumerate() {
            let query = &queries[(row * shape.heads + head) * shape.tile.key_dim..][..shape.tile.key_dim];
            pack_query(query, shape.scale, packed);
            *reference = log_sum_exp[row * shape.heads + head];
        }
    }

    let outputs = match sums {
        ColumnSums::Group => shape.kv_heads,
        ColumnSums::EachHead => shape.heads,
    };
    let mut out = vec![0f32; outputs * tiles * TILE_TOKENS];
    let columns = Disjoint::new(&mut out);
    pool.for_each_piece(shape.kv_heads * tiles, 1, |pieces| {
        let mut buffer = TileBuffer::default();
        for piece in pieces {
            let (kv_head, index) = (piece / tiles, piece % tiles);
            assert!(cache.tiles(sequence, kv_head) <= tiles);
            let Some(tile) = cache.tile(sequence, kv_head, index) else { continue };
            let tile = tile.decode(shape.tile, &mut buffer);
            tile.check(shape.tile);
            for member in 0..group {
                let head = kv_head * group + member;
                let output = if sums == ColumnSums::Group { kv_head } else { head };
                let start = (output * tiles + index) * TILE_TOKENS;
                // SAFETY: the tile of this KV head belongs to this piece alone, and its query heads' columns with it.
                let columns = unsafe { columns.slice(start..start + TILE_TOKENS) };
                let queries = Queries {
                    packed: &packed[head * count * pairs..][..count * pairs],
                    positions,
                    reach: shape.reach,
                };
                add(isa, shape.tile, &queries, &references[head * count..][..count], &tile, columns);
            }
        }
    });
    out
}

/// Adds the probabilities of `queries` over the tokens of `tile` to `columns` (`[TILE_TOKENS]`).
fn add(
    isa: Isa,
    shape: TileShape,
    queries: &Queries<'_>,
    log_sum_exp: &[f32],
    tile: &Tile<'_>,
    columns: &mut [f32],
) {
    match isa {
        Isa::Scalar => scalar::add_columns(queries, log_sum_exp, tile, columns),
        // SAFETY: an `Isa` above Scalar only exists on a processor that has it, and the tile's shape was checked.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { super::avx2::add_columns(shape, queries, log_sum_exp, tile, columns) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe {
            super::avx512::add_columns(shape, queries, log_sum_exp, tile, columns)
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => {
            let _ = shape;
            scalar::add_columns(queries, log_sum_exp, tile, columns)
        }
    }
}
