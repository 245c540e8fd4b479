//! Attention of a batch: every query row of every sequence over its own cached tiles, on all threads.
//!
//! The work is cut into items: one KV head of one sequence, for a block of query tokens. When that gives too few
//! items to keep the threads busy (decoding: one token, few heads), each item is cut again along the cache. Either way
//! a row folds the same spans of [`SPAN_TILES`] tiles in the same order, so the cut leaves no trace in the result.

use std::{ops::Range, sync::Mutex};

use super::{Partials, Queries, Reach, Tile, TileShape, fold, pack_query};
use crate::{Isa, Phase, ThreadPool, disjoint::Disjoint};

/// Tiles that are folded into one partial before it is merged: 512 tokens, a piece that stays in the L2 cache.
const SPAN_TILES: usize = 8;

/// Query rows (tokens × heads of a group) that an item takes on at most, unless one token alone has more.
const ITEM_ROWS: usize = 64;

/// Query rows of an item up to which it may be cut along the cache.
const CUT_ROWS: usize = 16;

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

    fn item_tokens(&self) -> usize {
        (ITEM_ROWS / self.group()).max(1)
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
    fn tile(&self, sequence: usize, kv_head: usize, index: usize) -> Option<Tile<'_>>;
}

/// Space that [`attend`] reuses from call to call.
pub struct AttentionScratch {
    threads: Vec<Mutex<ThreadScratch>>,
    /// Query rows of each sequence of the batch.
    sequences: Vec<Range<usize>>,
    /// Partials of items that were cut along the cache.
    spans: PartialRows,
}

#[derive(Default)]
struct ThreadScratch {
    packed: Vec<u32>,
    positions: Vec<u32>,
    piece: PartialRows,
    total: PartialRows,
}

/// Owned storage of [`Partials`].
#[derive(Default)]
struct PartialRows {
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
}

impl PartialRows {
    /// Sets memory aside, without touching it.
    fn reserve(&mut self, rows: usize, stride: usize) {
        for (column, len) in [(&mut self.max, rows), (&mut self.sum, rows), (&mut self.acc, rows * stride)] {
            column.reserve_exact(len);
        }
    }

    fn resize(&mut self, rows: usize, stride: usize) {
        for (column, len) in [(&mut self.max, rows), (&mut self.sum, rows), (&mut self.acc, rows * stride)] {
            if column.len() < len {
                column.resize(len, 0.0);
            }
        }
    }

    fn rows(&mut self, rows: Range<usize>, stride: usize) -> Partials<'_> {
        Partials {
            max: &mut self.max[rows.clone()],
            sum: &mut self.sum[rows.clone()],
            acc: &mut self.acc[rows.start * stride..rows.end * stride],
        }
    }
}

impl AttentionScratch {
    /// Scratch for `threads` threads, heads of `shape` and caches of up to `tokens` tokens.
    pub fn new(threads: usize, shape: &AttentionShape, tokens: usize) -> Self {
        let mut scratch = Self {
            threads: (0..threads).map(|_| Mutex::default()).collect(),
            sequences: Vec::new(),
            spans: PartialRows::default(),
        };
        scratch.fit(shape);
        // The system gives memory as it is touched: a long context costs nothing until its cache is long.
        let spans = tokens.div_ceil(super::TILE_TOKENS * SPAN_TILES);
        let rows = spans * CUT_ROWS.max(shape.group()) * least_items(threads);
        scratch.spans.reserve(rows, shape.tile.value_stride());
        scratch
    }

    /// Makes room for items of another layer's shape.
    fn fit(&mut self, shape: &AttentionShape) {
        let (rows, stride) = (shape.item_tokens() * shape.group(), shape.tile.value_stride());
        for thread in &mut self.threads {
            let thread = thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            thread.packed.resize(thread.packed.len().max(rows * shape.tile.key_pairs()), 0);
            thread.positions.resize(thread.positions.len().max(rows), 0);
            thread.piece.resize(rows, stride);
            thread.total.resize(rows, stride);
        }
    }
}

/// Items below which the work is cut along the cache as well.
fn least_items(threads: usize) -> usize {
    4 * threads
}

/// One KV head of one sequence, for some query rows.
#[derive(Clone)]
struct Item {
    sequence: usize,
    kv_head: usize,
    rows: Range<usize>,
}

struct Call<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    queries: &'a [f32],
    positions: &'a [u32],
    cache: &'a dyn CachedTiles,
    out: Disjoint<'a, f32>,
}

/// The query rows of a batch and where their results go.
pub struct AttentionRows<'a> {
    /// `[rows, heads, key_dim]`, rotated.
    pub queries: &'a [f32],
    /// `[rows]`.
    pub positions: &'a [u32],
    /// `[rows, heads, value_dim]`.
    pub out: &'a mut [f32],
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
    let AttentionRows { queries, positions, out } = rows;
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads));
    assert_eq!(queries.len(), positions.len() * shape.heads * shape.tile.key_dim);
    assert_eq!(out.len(), positions.len() * shape.heads * shape.tile.value_dim);
    scratch.fit(shape);
    let AttentionScratch { threads, sequences, spans: span_rows } = scratch;
    // That items write disjoint rows must not hang on `cache` giving the same answer twice: the ranges are copied.
    sequences.clear();
    sequences.extend((0..cache.sequences()).map(|sequence| cache.rows(sequence)));
    let mut covered = 0;
    for rows in sequences.iter() {
        assert!(rows.start == covered && rows.end >= covered, "sequences follow each other without gaps");
        covered = rows.end;
    }
    assert!(covered <= positions.len());

    let blocks = |rows: &Range<usize>| rows.len().div_ceil(shape.item_tokens());
    let items: usize = sequences.iter().map(|rows| blocks(rows) * shape.kv_heads).sum();
    // Later blocks see more tokens: they come first, so that the last pieces to be handed out are the short ones.
    let item = |mut index: usize| {
        for (sequence, rows) in sequences.iter().enumerate() {
            let blocks = blocks(rows);
            if index < blocks * shape.kv_heads {
                let start = rows.start + (blocks - 1 - index / shape.kv_heads) * shape.item_tokens();
                let rows = start..rows.end.min(start + shape.item_tokens());
                return Item { sequence, kv_head: index % shape.kv_heads, rows };
            }
            index -= blocks * shape.kv_heads;
        }
        unreachable!("items are counted by the same rule")
    };
    let longest = (0..sequences.len())
        .flat_map(|sequence| (0..shape.kv_heads).map(move |kv_head| cache.tiles(sequence, kv_head)))
        .max()
        .unwrap_or(0);
    let spans = longest.div_ceil(SPAN_TILES);

    let call = Call { isa, shape, queries, positions, cache, out: Disjoint::new(out) };
    let item_rows = (0..items).map(|index| item(index).rows.len() * shape.group()).max().unwrap_or(0);
    let cut = items < least_items(pool.threads()) && spans > 1 && item_rows <= CUT_ROWS.max(shape.group());
    let threads = &threads[..];

    if !cut {
        let grain = if items * item_rows * longest <= ALONE_TILE_ROWS { items } else { 1 };
        pool.for_each_piece_on_thread(items, grain, |thread, piece| {
            let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for index in piece {
                call.whole_item(&item(index), &mut scratch);
            }
        });
        return;
    }

    let stride = shape.tile.value_stride();
    span_rows.resize(items * spans * item_rows, stride);
    let partials = DisjointRows::new(span_rows, stride);
    pool.for_each_piece_on_thread(items * spans, 1, |thread, piece| {
        let mut scratch = threads[thread].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for index in piece {
            let item = item(index / spans);
            let rows = item.rows.len() * shape.group();
            let start = index * item_rows;
            // SAFETY: each index is handed out once, and its rows overlap no other index's.
            let mut partial = unsafe { partials.rows(start..start + rows) };
            call.pack(&item, &mut scratch);
            call.fold_span(&item, index % spans, &scratch.packed, &scratch.positions, &mut partial);
        }
    });
    let total = &mut threads[0].lock().unwrap_or_else(|poisoned| poisoned.into_inner()).total;
    for index in 0..items {
        let item = item(index);
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
        self.pack(item, scratch);
        let (rows, stride) = (item.rows.len() * self.shape.group(), self.shape.tile.value_stride());
        let ThreadScratch { packed, positions, piece, total } = scratch;
        let mut total = total.rows(0..rows, stride);
        total.reset();
        for span in 0..self.cache.tiles(item.sequence, item.kv_head).div_ceil(SPAN_TILES) {
            let mut piece = piece.rows(0..rows, stride);
            self.fold_span(item, span, packed, positions, &mut piece);
            total.merge(&piece);
        }
        self.write(item, &total);
    }

    /// Packs an item's queries, token by token, the heads of the group in turn.
    fn pack(&self, item: &Item, scratch: &mut ThreadScratch) {
        let (group, dim, pairs) = (self.shape.group(), self.shape.tile.key_dim, self.shape.tile.key_pairs());
        for (token, row) in item.rows.clone().enumerate() {
            for member in 0..group {
                let head = item.kv_head * group + member;
                let query = &self.queries[(row * self.shape.heads + head) * dim..][..dim];
                let slot = token * group + member;
                pack_query(query, self.shape.scale, &mut scratch.packed[slot * pairs..(slot + 1) * pairs]);
                scratch.positions[slot] = self.positions[row];
            }
        }
    }

    /// Folds one span of tiles into a fresh partial.
    fn fold_span(
        &self,
        item: &Item,
        span: usize,
        packed: &[u32],
        positions: &[u32],
        partial: &mut Partials<'_>,
    ) {
        partial.reset();
        let rows = partial.max.len();
        let queries = Queries {
            packed: &packed[..rows * self.shape.tile.key_pairs()],
            positions: &positions[..rows],
            reach: self.shape.reach,
        };
        let (mut first, mut last) = (u32::MAX, 0);
        for &position in queries.positions {
            let range = self.shape.reach.range(position);
            (first, last) = (first.min(range.0), last.max(range.1));
        }
        let tiles = self.cache.tiles(item.sequence, item.kv_head);
        let tiles = span * SPAN_TILES..tiles.min((span + 1) * SPAN_TILES);
        let mut tiles = tiles
            .filter_map(|index| self.cache.tile(item.sequence, item.kv_head, index))
            .filter(|tile| !tile.beyond(first, last))
            .peekable();
        while let Some(tile) = tiles.next() {
            fold(self.isa, self.shape.tile, &queries, &tile, tiles.peek(), partial);
        }
    }

    fn write(&self, item: &Item, total: &Partials<'_>) {
        let (group, dim) = (self.shape.group(), self.shape.tile.value_dim);
        for (token, row) in item.rows.clone().enumerate() {
            for member in 0..group {
                let start = (row * self.shape.heads + item.kv_head * group + member) * dim;
                // SAFETY: the part belongs to this row and head, which no other item has, because sequences do not
                // overlap and items cut them into disjoint rows and heads.
                let out = unsafe { self.out.slice(start..start + dim) };
                total.finish(token * group + member, out);
            }
        }
    }
}

/// Partials that several threads fill, each its own rows.
struct DisjointRows<'a> {
    max: Disjoint<'a, f32>,
    sum: Disjoint<'a, f32>,
    acc: Disjoint<'a, f32>,
    stride: usize,
}

impl<'a> DisjointRows<'a> {
    fn new(partials: &'a mut PartialRows, stride: usize) -> Self {
        let PartialRows { max, sum, acc } = partials;
        Self { max: Disjoint::new(max), sum: Disjoint::new(sum), acc: Disjoint::new(acc), stride }
    }

    /// # Safety
    /// No two results that live at the same time share a row.
    unsafe fn rows(&self, rows: Range<usize>) -> Partials<'_> {
        let elements = rows.start * self.stride..rows.end * self.stride;
        // SAFETY: disjoint rows are disjoint parts of each column.
        unsafe {
            Partials {
                max: self.max.slice(rows.clone()),
                sum: self.sum.slice(rows),
                acc: self.acc.slice(elements),
            }
        }
    }
}
