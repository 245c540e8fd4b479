//! Attention of a batch: every query row of every sequence over its own cached tiles, on all threads.
//!
//! The work is cut into items: one KV head of one sequence, for a block of query tokens. When that gives too few
//! items to keep the threads busy (decoding: one token, few heads), each item is cut again along the cache. Either way
//! a row folds the same spans of tiles in the same order ([`Kernel::span_tiles`]), so the cut leaves no trace in the
//! result.

use std::{ops::Range, sync::Mutex};

#[cfg(target_arch = "x86_64")]
use super::amx::Blocks;
use super::{Partials, Queries, Reach, Tile, TileShape, fold, pack_query};
use crate::{Isa, Phase, ThreadPool, disjoint::Disjoint};

/// How the rows of a sequence are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// A few rows at a time, by [`fold`].
    Rows,
    /// A prompt's rows by the tile unit, in blocks.
    #[cfg(target_arch = "x86_64")]
    Blocks,
}

impl Kernel {
    fn of(isa: Isa, phase: Phase) -> Self {
        match (isa, phase) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Phase::Prefill) => Self::Blocks,
            _ => Self::Rows,
        }
    }

    /// Tiles that are folded into one partial before it is merged.
    fn span_tiles(self) -> usize {
        match self {
            // 512 tokens, a piece that stays in the L2 cache: what a decoded token's threads share is cut finely.
            Self::Rows => 8,
            // 4096 tokens: to merge a prompt's rows costs as much as to fold a few tiles.
            #[cfg(target_arch = "x86_64")]
            Self::Blocks => 64,
        }
    }

    /// Query rows (tokens × heads of a group) that an item takes on at most, unless one token alone has more.
    fn item_rows(self) -> usize {
        match self {
            Self::Rows => 64,
            #[cfg(target_arch = "x86_64")]
            // Keys and values come from the outer caches once for so many rows.
            Self::Blocks => 256,
        }
    }
}

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
    /// Query rows of each sequence of the batch, and how they are folded.
    sequences: Vec<SequenceRows>,
    /// Partials of items that were cut along the cache.
    spans: PartialRows,
}

#[derive(Default)]
struct ThreadScratch {
    packed: PackedRows,
    piece: PartialRows,
    total: PartialRows,
}

/// An item's queries, as its kernel wants them.
#[derive(Default)]
struct PackedRows {
    pairs: Vec<u32>,
    positions: Vec<u32>,
    #[cfg(target_arch = "x86_64")]
    blocks: Blocks,
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
        let spans = tokens.div_ceil(super::TILE_TOKENS * Kernel::Rows.span_tiles());
        let rows = spans * CUT_ROWS.max(shape.group()) * least_items(threads);
        scratch.spans.reserve(rows, shape.tile.value_stride());
        scratch
    }

    /// Makes room for items of another layer's shape.
    fn fit(&mut self, shape: &AttentionShape) {
        let best = Kernel::of(Isa::detect(), Phase::Prefill);
        let rows = best.item_rows().max(Kernel::Rows.item_rows()).max(shape.group());
        let stride = shape.tile.value_stride();
        for thread in &mut self.threads {
            let thread = thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
            let PackedRows { pairs, positions, .. } = &mut thread.packed;
            let few = Kernel::Rows.item_rows().max(shape.group());
            pairs.resize(pairs.len().max(few * shape.tile.key_pairs()), 0);
            positions.resize(positions.len().max(few), 0);
            #[cfg(target_arch = "x86_64")]
            if best == Kernel::Blocks {
                thread.packed.blocks.reserve(rows, shape.tile);
            }
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
    kernel: Kernel,
    sequence: usize,
    kv_head: usize,
    rows: Range<usize>,
}

/// Query rows of a sequence, counted over the batch, and how they are folded.
struct SequenceRows {
    rows: Range<usize>,
    kernel: Kernel,
}

/// How the rows of a batch are cut into items.
struct Items<'a> {
    shape: &'a AttentionShape,
    sequences: &'a [SequenceRows],
    /// Most query rows of an item for the tile unit; what a row gives does not depend on it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there is no tile unit"))]
    most_rows: usize,
}

impl<'a> Items<'a> {
    /// At least `least` items if halving the tile unit's allows it.
    fn new(shape: &'a AttentionShape, sequences: &'a [SequenceRows], least: usize) -> Self {
        let mut items = Self { shape, sequences, most_rows: usize::MAX };
        for most_rows in [128, 64, 32, 16] {
            if items.count() < least {
                items.most_rows = most_rows;
            }
        }
        items
    }

    /// Tokens of an item of `sequence`.
    fn tokens(&self, sequence: &SequenceRows) -> usize {
        let rows = match sequence.kernel {
            Kernel::Rows => Kernel::Rows.item_rows(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Blocks => Kernel::Blocks.item_rows().min(self.most_rows),
        };
        (rows / self.shape.group()).max(1)
    }

    fn count(&self) -> usize {
        let of = |sequence: &SequenceRows| sequence.rows.len().div_ceil(self.tokens(sequence));
        self.sequences.iter().map(|sequence| of(sequence) * self.shape.kv_heads).sum()
    }

    /// Later rows see more tokens: they come first, so that the last pieces to be handed out are the short ones.
    fn get(&self, mut index: usize) -> Item {
        let kv_heads = self.shape.kv_heads;
        for (number, sequence) in self.sequences.iter().enumerate() {
            let SequenceRows { rows, kernel } = sequence;
            let tokens = self.tokens(sequence);
            let blocks = rows.len().div_ceil(tokens);
            if index < blocks * kv_heads {
                let start = rows.start + (blocks - 1 - index % blocks) * tokens;
                let rows = start..rows.end.min(start + tokens);
                return Item { kernel: *kernel, sequence: number, kv_head: index / blocks, rows };
            }
            index -= blocks * kv_heads;
        }
        unreachable!("items are counted by the same rule")
    }
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

    let call = Call { isa, shape, queries, positions, cache, out: Disjoint::new(out) };
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
            call.fold_span(&item, index % spans, &mut scratch.packed, &mut partial);
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
        let ThreadScratch { packed, piece, total } = scratch;
        #[cfg(target_arch = "x86_64")]
        if item.kernel == Kernel::Blocks && spans == 1 {
            // To merge a single piece would change nothing.
            self.fold_blocks(item, 0, &mut packed.blocks);
            // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
            self.write_rows(item, |row, out| unsafe { packed.blocks.finish(row, out) });
            return;
        }
        let mut total = total.rows(0..rows, stride);
        total.reset();
        for span in 0..spans {
            let mut piece = piece.rows(0..rows, stride);
            self.fold_span(item, span, packed, &mut piece);
            total.merge(&piece);
        }
        self.write(item, &total);
    }

    /// Packs an item's queries, token by token, the heads of the group in turn.
    fn pack(&self, item: &Item, packed: &mut PackedRows) {
        let (group, dim, pairs) = (self.shape.group(), self.shape.tile.key_dim, self.shape.tile.key_pairs());
        #[cfg(target_arch = "x86_64")]
        if item.kernel == Kernel::Blocks {
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
                    Kernel::Blocks => unsafe { packed.blocks.pack(slot, position, query, self.shape.scale) },
                }
            }
        }
    }

    /// Folds one span of tiles into a fresh partial.
    fn fold_span(&self, item: &Item, span: usize, packed: &mut PackedRows, partial: &mut Partials<'_>) {
        let rows = partial.max.len();
        #[cfg(target_arch = "x86_64")]
        if item.kernel == Kernel::Blocks {
            self.fold_blocks(item, span, &mut packed.blocks);
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
            fold(self.isa, self.shape.tile, &queries, &tile, tiles.peek(), partial);
        }
    }

    /// Folds one span of tiles into blocks that hold nothing else.
    #[cfg(target_arch = "x86_64")]
    fn fold_blocks(&self, item: &Item, span: usize, blocks: &mut Blocks) {
        blocks.reset();
        // SAFETY: the kernel exists on processors with AMX and AVX-512 only.
        unsafe { blocks.fold(self.tiles(item, span)) };
    }

    /// The tiles of a span that some row of an item may see.
    fn tiles(&self, item: &Item, span: usize) -> impl Iterator<Item = Tile<'_>> {
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
