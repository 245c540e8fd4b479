//! Attention of a batch: every query row of every sequence over its own cached tiles, on all threads.
//!
//! The work comes in [`Items`]. When they are too few to keep the threads busy (decoding: one token, few heads), each item is cut
//! again along the cache. Either way a row folds the same spans of tiles in the same order ([`Kernel::span_tiles`]), so the
//! cut leaves no trace in the result.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering::AcqRel},
};

use super::{
    Partials, Queries, Reach, StoredTile, TileBuffer, TileShape, fold,
    items::{Item, Items, Kernel, SequenceRows, least_items},
    pack_query,
    scratch::{AttentionScratch, DisjointRows, PackedRows, ThreadScratch},
};
#[cfg(target_arch = "x86_64")]
use super::{amx::Blocks, fold_coded};
use crate::{Isa, Phase, ThreadPool, disjoint::Disjoint};

/// Query rows of an item up to which it may be cut along the cache.
pub(super) const CUT_ROWS: usize = 16;

/// Tiles times query rows up to which a parallel region costs more than it gains: about a microsecond of work.
const ALONE_TILE_ROWS: usize = 24;

/// Pieces of a thread when items are cut along the cache: each packs its queries once, and the last ones even out what is left.
const PIECES: usize = 4;

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

    /// Tiles at a head's beginning that are known to be dropped: they are not asked for.
    fn dropped(&self, _sequence: usize, _kv_head: usize) -> usize {
        0
    }

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
    let AttentionScratch { threads, sequences, spans: span_rows, unfinished } = scratch;
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
    let (out, log_sum_exp) = (Disjoint::new(out), log_sum_exp.map(Disjoint::new));
    let call = Call { isa, shape, queries, positions, cache, out, log_sum_exp };
    let heads = (0..sequences.len()).flat_map(|s| (0..shape.kv_heads).map(move |kv_head| (s, kv_head)));
    let longest =
        heads.clone().map(|(s, kv_head)| cache.tiles(s, kv_head).saturating_sub(cache.dropped(s, kv_head)));
    let longest = longest.max().unwrap_or(0);
    // Of all items together, so that a span has one number.
    let spans = heads.map(|(sequence, kv_head)| call.spans(sequence, kv_head, sequences[sequence].kernel));
    let spans = spans.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
    let (first_span, spans) = (spans.start, spans.len());

    let item_rows = (0..count).map(|index| items.get(index).rows.len() * shape.group()).max().unwrap_or(0);
    let cut = count < least_items(pool.threads()) && spans > 1 && item_rows <= CUT_ROWS.max(shape.group());
    let threads = &threads[..];

    if !cut {
        let alone = count * item_rows * longest <= ALONE_TILE_ROWS;
        let grain = if alone { count } else { 1 };
        pool.for_each_piece_on_thread(count, grain, |thread, piece| {
            let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for index in piece {
                // So few tiles lie in an inner cache, where to ask for them costs more than it gains.
                let next = Some(index + 1).filter(|&next| next < count && !alone);
                let next = next.and_then(|next| call.first_tile_of(&items.get(next)));
                call.whole_item(&items.get(index), next, &mut scratch);
            }
        });
        return;
    }

    let stride = shape.tile.value_stride();
    span_rows.resize(count * spans * item_rows, stride);
    let partials = DisjointRows::new(span_rows, stride);
    unfinished.clear();
    unfinished.resize_with(count, || AtomicUsize::new(spans));
    let grain = (count * spans / (PIECES * threads.len())).max(1);
    pool.for_each_piece_on_thread(count * spans, grain, |thread, piece| {
        let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let ThreadScratch { packed, total, decoded, .. } = &mut *scratch;
        let mut start = piece.start;
        while start < piece.end {
            let run = start..piece.end.min((start / spans + 1) * spans);
            let (number, done) = (start / spans, run.len());
            start = run.end;
            let item = items.get(number);
            let rows = item.rows.len() * shape.group();
            let rows_of = |index: usize| index * item_rows..index * item_rows + rows;
            call.pack(&item, packed);
            for index in run {
                // SAFETY: each index is handed out once, and its rows overlap no other index's.
                let mut partial = unsafe { partials.rows(rows_of(index)) };
                let next = Some(index + 1).filter(|&next| next < count * spans);
                let next = next
                    .and_then(|next| call.first_tile(&items.get(next / spans), first_span + next % spans));
                call.fold_span(&item, first_span + index % spans, next, packed, decoded, &mut partial);
            }
            // Who folds an item's last span joins all of them: what each thread wrote before it counted is visible then.
            if unfinished[number].fetch_sub(done, AcqRel) == done {
                let mut total = total.rows(0..rows, stride);
                total.reset();
                for index in number * spans..(number + 1) * spans {
                    // SAFETY: all spans of the item are counted, so no thread uses their rows any more.
                    total.merge(&unsafe { partials.rows(rows_of(index)) });
                }
                call.write(&item, &total);
            }
        }
    });
}

impl Call<'_> {
    /// Folds all spans of an item and writes its rows; `next` is the tile that comes after them.
    fn whole_item(&self, item: &Item, next: Option<StoredTile<'_>>, scratch: &mut ThreadScratch) {
        self.pack(item, &mut scratch.packed);
        let (rows, stride) = (item.rows.len() * self.shape.group(), self.shape.tile.value_stride());
        let spans = self.spans(item.sequence, item.kv_head, item.kernel);
        let ThreadScratch { packed, piece, total, decoded } = scratch;
        #[cfg(target_arch = "x86_64")]
        if item.kernel.in_blocks() && spans.len() == 1 {
            // To merge a single piece would change nothing.
            self.fold_blocks(item, spans.start, next, &mut packed.blocks, decoded);
            // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
            self.write_rows(item, |row, out| unsafe { packed.blocks.finish(row, out) });
            self.write_log_sum_exp(item, |row| packed.blocks.log_sum_exp(row));
            return;
        }
        let mut total = total.rows(0..rows, stride);
        total.reset();
        for span in spans.clone() {
            let mut piece = piece.rows(0..rows, stride);
            let next = if span + 1 < spans.end { self.first_tile(item, span + 1) } else { next };
            self.fold_span(item, span, next, packed, decoded, &mut piece);
            total.merge(&piece);
        }
        self.write(item, &total);
    }

    /// Packs an item's queries, token by token, the heads of the group in turn.
    fn pack(&self, item: &Item, packed: &mut PackedRows) {
        let (group, dim, pairs) = (self.shape.group(), self.shape.tile.key_dim, self.shape.tile.key_pairs());
        #[cfg(target_arch = "x86_64")]
        if item.kernel.in_blocks() {
            packed.blocks.begin(item.rows.len() * group, self.shape.tile, self.shape.reach);
        }
        for (token, row) in item.rows.clone().enumerate() {
            for member in 0..group {
                let head = item.kv_head * group + member;
                let query = &self.queries[(row * self.shape.heads + head) * dim..][..dim];
                let (slot, position) = (token * group + member, self.positions[row]);
                match item.kernel {
                    // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Blocks(_) => unsafe {
                        packed.blocks.pack(slot, position, query, self.shape.scale)
                    },
                    _ => {
                        let pairs = slot * pairs..(slot + 1) * pairs;
                        pack_query(query, self.shape.scale, &mut packed.pairs[pairs]);
                        packed.positions[slot] = position;
                    }
                }
            }
        }
    }

    /// Folds one span of tiles into a fresh partial; `next` is the tile that comes after them.
    fn fold_span(
        &self,
        item: &Item,
        span: usize,
        next: Option<StoredTile<'_>>,
        packed: &mut PackedRows,
        decoded: &mut TileBuffer,
        partial: &mut Partials<'_>,
    ) {
        let rows = partial.max.len();
        #[cfg(target_arch = "x86_64")]
        if item.kernel.in_blocks() {
            self.fold_blocks(item, span, next, &mut packed.blocks, decoded);
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
            let ahead = tile.ahead(tiles.peek().or(next.as_ref()));
            #[cfg(target_arch = "x86_64")]
            if item.kernel == Kernel::Codes {
                let tile = tile.coded(self.shape.tile, decoded);
                fold_coded(self.isa, self.shape.tile, &queries, &tile, ahead, partial);
                continue;
            }
            let tile = tile.decode(self.shape.tile, decoded);
            fold(self.isa, self.shape.tile, &queries, &tile, ahead, partial);
        }
    }

    /// Folds one span of tiles into blocks that hold nothing else.
    #[cfg(target_arch = "x86_64")]
    fn fold_blocks(
        &self,
        item: &Item,
        span: usize,
        next: Option<StoredTile<'_>>,
        blocks: &mut Blocks,
        decoded: &mut TileBuffer,
    ) {
        blocks.reset();
        // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
        unsafe { blocks.fold(self.tiles(item, span), next, decoded) };
    }

    /// The spans of a head that hold tiles.
    fn spans(&self, sequence: usize, kv_head: usize, kernel: Kernel) -> Range<usize> {
        let tiles = kernel.span_tiles();
        self.cache.dropped(sequence, kv_head) / tiles..self.cache.tiles(sequence, kv_head).div_ceil(tiles)
    }

    /// The first tile of an item.
    fn first_tile_of(&self, item: &Item) -> Option<StoredTile<'_>> {
        self.first_tile(item, self.spans(item.sequence, item.kv_head, item.kernel).start)
    }

    /// The first tile of a span.
    fn first_tile(&self, item: &Item, span: usize) -> Option<StoredTile<'_>> {
        self.tiles(item, span).next()
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
