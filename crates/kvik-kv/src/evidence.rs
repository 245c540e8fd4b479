//! What methods may know of a sequence: how much attention its tokens got, and from which queries.
//!
//! Nothing is gathered unless a method of the pipeline asks for it ([`Evidence`]). Attention leaves the log-sum-exp of each
//! query row behind, and a second pass over the keys turns scores into column sums; no score matrix is kept.

use kvik_kernels::{
    Isa, Phase, ThreadPool,
    attention::{AttentionShape, ColumnSums, ObservedRows, PlaneKind, TILE_TOKENS, column_sums},
};

use crate::{
    attend::{AllTiles, tiles},
    head::HeadCache,
    spilled::Glance,
    store::{CacheError, KvStore},
};

/// What a method wants to be gathered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The queries of the last so many tokens of a prompt, with which [`OpenCache::window_sums`](crate::OpenCache::window_sums)
    /// scores all rows.
    pub window: usize,
    /// The attention that each row gets from all queries, summed up: [`RowStatistics::accumulated`](crate::RowStatistics).
    pub accumulated: bool,
    /// The attention that each row gets from each decoded token: [`RowStatistics::step`](crate::RowStatistics).
    pub step: bool,
}

impl Evidence {
    /// Nothing, which costs nothing.
    pub const NONE: Self = Self { window: 0, accumulated: false, step: false };

    /// All that either wants.
    pub fn union(self, other: Self) -> Self {
        Self {
            window: self.window.max(other.window),
            accumulated: self.accumulated || other.accumulated,
            step: self.step || other.step,
        }
    }

    /// True if something is wanted.
    pub fn any(self) -> bool {
        self != Self::NONE
    }
}

/// Query rows of one sequence in a pass, at one layer.
#[derive(Clone, Copy)]
pub struct StepQueries<'a> {
    /// Heads and dimensions.
    pub shape: &'a AttentionShape,
    /// What the rows are computed for.
    pub phase: Phase,
    /// `[rows, heads, key_dim]`, rotated.
    pub queries: &'a [f32],
    /// `[rows]`.
    pub positions: &'a [u32],
}

/// The last queries of a prompt at one layer.
#[derive(Clone, Default)]
pub(crate) struct WindowQueries {
    pub(crate) shape: Option<AttentionShape>,
    /// `[rows, heads, key_dim]`.
    pub(crate) queries: Vec<f32>,
    pub(crate) positions: Vec<u32>,
    /// `[rows, heads]`.
    pub(crate) log_sum_exp: Vec<f32>,
}

impl WindowQueries {
    /// Takes the last rows of `step` in, and keeps `most` in all.
    pub(crate) fn push(&mut self, step: &StepQueries<'_>, log_sum_exp: &[f32], most: usize) {
        let width = step.shape.heads * step.shape.tile.key_dim;
        let (rows, heads) = (step.positions.len(), step.shape.heads);
        let new = rows.min(most);
        let old = self.positions.len().saturating_sub(most - new);
        self.shape = Some(*step.shape);
        self.queries.drain(..old * width);
        self.positions.drain(..old);
        self.log_sum_exp.drain(..old * heads);
        self.queries.extend_from_slice(&step.queries[(rows - new) * width..]);
        self.positions.extend_from_slice(&step.positions[rows - new..]);
        self.log_sum_exp.extend_from_slice(&log_sum_exp[(rows - new) * heads..]);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The kept queries, `[rows, heads, key_dim]`, and their heads and dimensions.
    pub(crate) fn queries(&self) -> Option<(&[f32], &[u32], AttentionShape)> {
        Some((&self.queries, &self.positions, self.shape?))
    }

    /// Column sums of the last `rows` kept queries over the rows of each head, and what could not be read for them.
    pub(crate) fn sums(
        &self,
        pool: &ThreadPool,
        store: &KvStore,
        heads: &[HeadCache],
        rows: usize,
        each: ColumnSums,
    ) -> (Vec<Vec<f32>>, Option<CacheError>) {
        let Some(shape) = &self.shape else { return (heads.iter().map(|_| Vec::new()).collect(), None) };
        let skip = self.positions.len().saturating_sub(rows);
        let observed = ObservedRows {
            queries: &self.queries[skip * shape.heads * shape.tile.key_dim..],
            positions: &self.positions[skip..],
            log_sum_exp: &self.log_sum_exp[skip * shape.heads..],
        };
        sums_by_row(pool, store, heads, shape, observed, each)
    }
}

/// Adds what the rows of a pass show to the statistics of each head.
///
/// # Errors
/// [`CacheError::Spill`] if keys lie in a file and cannot be read; nothing is added then.
pub(crate) fn gather(
    pool: &ThreadPool,
    store: &KvStore,
    heads: &mut [HeadCache],
    wanted: Evidence,
    step: &StepQueries<'_>,
    log_sum_exp: &[f32],
) -> Result<(), CacheError> {
    let decoding = step.phase == Phase::Decode;
    if !(wanted.accumulated || wanted.step && decoding) {
        return Ok(());
    }
    let observed = ObservedRows { queries: step.queries, positions: step.positions, log_sum_exp };
    let (sums, failure) = sums_by_row(pool, store, heads, step.shape, observed, ColumnSums::Group);
    if let Some(failure) = failure {
        return Err(failure);
    }
    for (head, sums) in heads.iter_mut().zip(sums) {
        if wanted.accumulated {
            let accumulated = &mut head.statistics.accumulated;
            accumulated.resize(sums.len(), 0.0);
            for (total, &sum) in accumulated.iter_mut().zip(&sums) {
                *total += sum;
            }
        }
        if wanted.step && decoding {
            head.statistics.step = sums;
        }
    }
    Ok(())
}

/// Column sums by row, for each KV head or each query head, and what could not be read for them.
fn sums_by_row(
    pool: &ThreadPool,
    store: &KvStore,
    heads: &[HeadCache],
    shape: &AttentionShape,
    observed: ObservedRows<'_>,
    each: ColumnSums,
) -> (Vec<Vec<f32>>, Option<CacheError>) {
    let most = heads.iter().map(tiles).max().unwrap_or(0);
    let planes = heads.iter().flat_map(HeadCache::planes).map(|planes| &planes[PlaneKind::Keys as usize]);
    let (blocks, failure) = Glance::at(store, planes.flat_map(|keys| keys.blocks()));
    let cache = AllTiles { blocks: &blocks, heads };
    let sums = column_sums(pool, Isa::active(), shape, observed, &cache, 0, most, each);
    let members = if each == ColumnSums::Group { 1 } else { shape.group() };
    let outputs = (0..heads.len() * members).map(|output| {
        let head = &heads[output / members];
        let tiles = sums[output * most * TILE_TOKENS..][..most * TILE_TOKENS].chunks_exact(TILE_TOKENS);
        let mut by_row = Vec::with_capacity(head.rows());
        let mut tiles = tiles.into_iter();
        for segment in &head.segments {
            let mut left = segment.end();
            for tile in tiles.by_ref().take(segment.tiles()) {
                let rows = left.min(TILE_TOKENS);
                by_row.extend_from_slice(&tile[..rows]);
                left -= rows;
            }
        }
        by_row
    });
    (outputs.collect(), failure)
}
