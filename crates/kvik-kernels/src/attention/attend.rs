//! Attention of a batch: every query row of every sequence over its own cached tiles, on all threads.
//!
//! The work comes in [`Items`]. When they are too few to keep the threads busy (decoding: one token, few heads), each item is cut
//! again along the cache. Either way a row folds the same spans of tiles in the same order ([`Kernel::span_tiles`]), so the
//! cut leaves no trace in the result.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx::Blocks;
use super::{
    Partials, Queries, Reach, StoredTile, TileBuffer, TileShape, fold,
    items::{Item, Items, Kernel, SequenceRows, least_items},
    pack_query,
    scratch::{AttentionScratch, DisjointRows, PackedRows, ThreadScratch},
};
use crate::{Isa, Phase, ThreadPool, disjoint::Disjoint};

/// Query rows of an item up to which it may be cut along the cache.
pub(super) const CUT_ROWS: usize = 16;

/// Tiles times query rows up to which a parallel region costs more than it gains: about a microsecond of work.
const ALONE_TILE_ROWS: usize = 24;

/// What does not change from call to call within a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of the cache.
    pub kv_heads: usize,
    /// Head dimensions.
    pub tile: TileShape,
    /// Factor on every score, usually `1 / sqrt(key_dim)`.
    pub scale: f32,
    /// Which tokens a query sees.
    pub reach: Reach,
}

impl AttentionShape {
    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// The cached tiles of a batch, for one layer. Heads may hold different numbers of tiles.
pub trait CachedTiles: Sync {
    /// Sequences in the batch.
    fn sequences(&self) -> usize;

    /// The query rows of a sequence, counted over the whole batch.
    fn rows(&self, sequence: usize) -> Range<usize>;

    /// What those rows are computed for.
    fn phase(&self, sequence: usize) -> Phase;

    /// One past the index of a head's last tile.
    fn tiles(&self, sequence: usize, kv_head: usize) -> usize;

    /// A tile of a head, or `None` if it was dropped.
    fn tile(&self, sequence: usize, kv_head: usize, index: usize) -> Option<StoredTile<'_>>;
}

struct Call<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    queries: &'a [f32],
    positions: &'a [u32],
    cache: &'a dyn CachedTiles,
    out: Disjoint<'a, f32>,
    log_sum_exp: Option<Disjoint<'a, f32>>,
}

/// The query rows of a batch and where their results go.
pub struct AttentionRows<'a> {
    /// `[rows, heads, key_dim]`, rotated.
    pub queries: &'a [f32],
    /// `[rows]`.
    pub positions: &'a [u32],
    /// `[rows, heads, value_dim]`.
    pub out: &'a mut [f32],
    /// `[rows, heads]`, if wanted: the log of the sum of the exponentials of each query's scores, with which
    /// [`super::column_sums`] makes probabilities of scores.
    pub log_sum_exp: Option<&'a mut [f32]>,
}

/// Attention of all query rows of a batch.
///
/// # Panics
/// If the rows do not fit `shape`, or `cache` names rows outside them or the same row twice.
pub fn attend(
    pool: &ThreadPool,
    isa: Isa,
    shape: &AttentionShape,
    rows: AttentionRows<'_>,
    cache: &dyn CachedTiles,
    scratch: &mut AttentionScratch,
) {
    let AttentionRows { queries, positions, out, log_sum_exp } = rows;
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads));
    assert_eq!(queries.len(), positions.len() * shape.heads * shape.tile.key_dim);
    assert_eq!(out.len(), positions.len() * shape.heads * shape.tile.value_dim);
    assert!(log_sum_exp.as_ref().is_none_or(|lse| lse.len() == positions.len() * shape.heads));
    scratch.fit(shape);
    let AttentionScratch { threads, sequences, spans: span_rows } = scratch;
    // That items write disjoint rows must not hang on `cache` giving the same answer twice: the ranges are copied.
    sequences.clear();
    sequences.extend((0..cache.sequences()).map(|sequence| SequenceRows {
        rows: cache.rows(sequence),
        kernel: Kernel::of(isa, cache.phase(sequence)),
    }));
    let mut covered = 0;
    for SequenceRows { rows, .. } in sequences.iter() {
        assert!(rows.start == covered && rows.end >= covered, "sequences follow each other without gaps");
        covered = rows.end;
    }
    assert!(covered <= positions.len());

    let items = Items::new(shape, sequences, least_items(pool.threads()));
    let count = items.count();
    let spans_of = |sequence: usize, kv_head: usize| {
        cache.tiles(sequence, kv_head).div_ceil(sequences[sequence].kernel.span_tiles())
    };
    let heads = (0..sequences.len()).flat_map(|s| (0..shape.kv_heads).map(move |kv_head| (s, kv_head)));
    let longest = heads.clone().map(|(sequence, kv_head)| cache.tiles(sequence, kv_head)).max().unwrap_or(0);
    let spans = heads.map(|(sequence, kv_head)| spans_of(sequence, kv_head)).max().unwrap_or(0);

    let (out, log_sum_exp) = (Disjoint::new(out), log_sum_exp.map(Disjoint::new));
    let call = Call { isa, shape, queries, positions, cache, out, log_sum_exp };
    let item_rows = (0..count).map(|index| items.get(index).rows.len() * shape.group()).max().unwrap_or(0);
    let cut = count < least_items(pool.threads()) && spans > 1 && item_rows <= CUT_ROWS.max(shape.group());
    let threads = &threads[..];

    if !cut {
        let grain = if count * item_rows * longest <= ALONE_TILE_ROWS { count } else { 1 };
        pool.for_each_piece_on_thread(count, grain, |thread, piece| {
            let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for index in piece {
                call.whole_item(&items.get(index), &mut scratch);
            }
        });
        return;
    }

    let stride = shape.tile.value_stride();
    span_rows.resize(count * spans * item_rows, stride);
    let partials = DisjointRows::new(span_rows, stride);
    pool.for_each_piece_on_thread(count * spans, 1, |thread, piece| {
        let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for index in piece {
            let item = items.get(index / spans);
            let rows = item.rows.len() * shape.group();
            let start = index * item_rows;
            // SAFETY: each index is handed out once, and its rows overlap no other index's.
            let mut partial = unsafe { partials.rows(start..start + rows) };
            call.pack(&item, &mut scratch.packed);
            let ThreadScratch { packed, decoded, .. } = &mut *scratch;
            call.fold_span(&item, index % spans, packed, decoded, &mut partial);
        }
    });
    let total = &mut threads[0].lock().unwrap_or_else(|poisoned| poisoned.into_inner()).total;
    for index in 0..count {
        let item = items.get(index);
        let rows = item.rows.len() * shape.group();
        let mut total = total.rows(0..rows, stride);
        total.reset();
        for span in 0..spans {
            let start = (index * spans + span) * item_rows;
            total.merge(&span_rows.rows(start..start + rows, stride));
        }
        call.write(&item, &total);
    }
}

impl Call<'_> {
    /// Folds all spans of an item and writes its rows.
    fn whole_item(&self, item: &Item, scratch: &mut ThreadScratch) {
        self.pack(item, &mut scratch.packed);
        let (rows, stride) = (item.rows.len() * self.shape.group(), self.shape.tile.value_stride());
        let spans = self.cache.tiles(item.sequence, item.kv_head).div_ceil(item.kernel.span_tiles());
        let ThreadScratch { packed, piece, total, decoded } = scratch;
        #[cfg(target_arch = "x86_64")]
        if item.kernel != Kernel::Rows && spans == 1 {
            // To merge a single piece would change nothing.
            self.fold_blocks(item, 0, &mut packed.blocks, decoded);
            // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
            self.write_rows(item, |row, out| unsafe { packed.blocks.finish(row, out) });
            self.write_log_sum_exp(item, |row| packed.blocks.log_sum_exp(row));
            return;
        }
        let mut total = total.rows(0..rows, stride);
        total.reset();
        for span in 0..spans {
            let mut piece = piece.rows(0..rows, stride);
            self.fold_span(item, span, packed, decoded, &mut piece);
            total.merge(&piece);
        }
        self.write(item, &total);
    }

    /// Packs an item's queries, token by token, the heads of the group in turn.
    fn pack(&self, item: &Item, packed: &mut PackedRows) {
        let (group, dim, pairs) = (self.shape.group(), self.shape.tile.key_dim, self.shape.tile.key_pairs());
        #[cfg(target_arch = "x86_64")]
        if item.kernel != Kernel::Rows {
            packed.blocks.begin(item.rows.len() * group, self.shape.tile, self.shape.reach);
        }
        for (token, row) in item.rows.clone().enumerate() {
            for member in 0..group {
                let head = item.kv_head * group + member;
                let query = &self.queries[(row * self.shape.heads + head) * dim..][..dim];
                let (slot, position) = (token * group + member, self.positions[row]);
                match item.kernel {
                    Kernel::Rows => {
                        let pairs = slot * pairs..(slot + 1) * pairs;
                        pack_query(query, self.shape.scale, &mut packed.pairs[pairs]);
                        packed.positions[slot] = position;
                    }
                    // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Blocks(_) => unsafe {
                        packed.blocks.pack(slot, position, query, self.shape.scale)
                    },
                }
            }
        }
    }

    /// Folds one span of tiles into a fresh partial.
    fn fold_span(
        &self,
        item: &Item,
        span: usize,
        packed: &mut PackedRows,
        decoded: &mut TileBuffer,
        partial: &mut Partials<'_>,
    ) {
        let rows = partial.max.len();
        #[cfg(target_arch = "x86_64")]
        if item.kernel != Kernel::Rows {
            self.fold_blocks(item, span, &mut packed.blocks, decoded);
            for row in 0..rows {
                // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
                unsafe { packed.blocks.export(row, partial) };
            }
            return;
        }
        partial.reset();
        let queries = Queries {
            packed: &packed.pairs[..rows * self.shape.tile.key_pairs()],
            positions: &packed.positions[..rows],
            reach: self.shape.reach,
        };
        let mut tiles = self.tiles(item, span).peekable();
        while let Some(tile) = tiles.next() {
            let next = tiles.peek();
            if let Some(next) = next {
                next.fetch();
            }
            let next_keys = next.map_or(&[][..], StoredTile::plain_keys);
            let tile = tile.decode(self.shape.tile, decoded);
            fold(self.isa, self.shape.tile, &queries, &tile, next_keys, partial);
        }
    }

    /// Folds one span of tiles into blocks that hold nothing else.
    #[cfg(target_arch = "x86_64")]
    fn fold_blocks(&self, item: &Item, span: usize, blocks: &mut Blocks, decoded: &mut TileBuffer) {
        blocks.reset();
        // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
        unsafe { blocks.fold(self.tiles(item, span), decoded) };
    }

    /// The tiles of a span that some row of an item may see.
    fn tiles(&self, item: &Item, span: usize) -> impl Iterator<Item = StoredTile<'_>> {
        let (mut first, mut last) = (u32::MAX, 0);
        for &position in &self.positions[item.rows.clone()] {
            let range = self.shape.reach.range(position);
            (first, last) = (first.min(range.0), last.max(range.1));
        }
        let &Item { kernel, sequence, kv_head, .. } = item;
        let tiles = span * kernel.span_tiles()..(span + 1) * kernel.span_tiles();
        (tiles.start..tiles.end.min(self.cache.tiles(sequence, kv_head)))
            .filter_map(move |index| self.cache.tile(sequence, kv_head, index))
            .filter(move |tile| !tile.beyond(first, last))
    }

    fn write(&self, item: &Item, total: &Partials<'_>) {
        self.write_rows(item, |row, out| total.finish(row, out));
        self.write_log_sum_exp(item, |row| total.log_sum_exp(row));
    }

    /// Lets `of` say the log-sum-exp of each row of an item, if it is wanted.
    fn write_log_sum_exp(&self, item: &Item, of: impl Fn(usize) -> f32) {
        let Some(log_sum_exp) = &self.log_sum_exp else { return };
        let group = self.shape.group();
        for (token, row) in item.rows.clone().enumerate() {
            let start = row * self.shape.heads + item.kv_head * group;
            // SAFETY: the part belongs to this row and these heads, as in `write_rows`.
            let out = unsafe { log_sum_exp.slice(start..start + group) };
            for (member, out) in out.iter_mut().enumerate() {
                *out = of(token * group + member);
            }
        }
    }

    /// Lets `finish` write each row of an item to its place in the output.
    fn write_rows(&self, item: &Item, finish: impl Fn(usize, &mut [f32])) {
        let (group, dim) = (self.shape.group(), self.shape.tile.value_dim);
        for (token, row) in item.rows.clone().enumerate() {
            for member in 0..group {
                let start = (row * self.shape.heads + item.kv_head * group + member) * dim;
                // SAFETY: the part belongs to this row and head, which no other item has, because sequences do not
                // overlap and items cut them into disjoint rows and heads.
                let out = unsafe { self.out.slice(start..start + dim) };
                finish(token * group + member, out);
            }
        }
    }
}
