//! One sequence's cache, over all layers and heads.

use std::sync::OnceLock;

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{PlaneKind, TILE_TOKENS},
};
use kvik_memory::SpillError;

use crate::{
    Evidence, Method, OpenCache, Segment, StepQueries,
    evidence::{self, WindowQueries},
    head::HeadCache,
    store::{CacheError, KvStore, ReturnList},
};

/// Rows of keys below which one thread writes them alone.
const SERIAL_ROWS: usize = 64;

/// Cached keys and values of one sequence.
///
/// A step of `n` tokens is written as `reserve(n)`, then `append` once per layer, then `commit(n)`. After an error the
/// sequence is as it was after its last commit once [`Self::truncate`] to [`Self::len`] was called.
///
/// The methods of its pipeline rewrite it between steps; what they want to know is gathered by [`Self::observe`].
pub struct SequenceCache {
    pub(crate) layers: Vec<LayerCache>,
    pub(crate) len: usize,
    /// Tokens of the prompt that is being read.
    pub(crate) prompt_tokens: usize,
    /// Prompts that were read to their end.
    pub(crate) turns: usize,
    /// Tokens that methods may have rewritten: a shorter sequence is not in the cache any more.
    pub(crate) rewritten_tokens: usize,
    capacity_tokens: usize,
    pub(crate) methods: Vec<Box<dyn Method>>,
    /// The pipeline that the methods are of, if they are of one.
    pub(crate) pipeline: Option<String>,
    pub(crate) evidence: Evidence,
    /// Per layer.
    pub(crate) window: Vec<WindowQueries>,
    returned: ReturnList,
}

pub(crate) struct LayerCache {
    pub(crate) heads: Vec<HeadCache>,
}

impl SequenceCache {
    pub(crate) fn new(
        store: &KvStore,
        returned: ReturnList,
        methods: Vec<Box<dyn Method>>,
        pipeline: Option<String>,
    ) -> Self {
        let capacity_tokens = store.capacity_tokens();
        let layers = store.shape().layers.iter().enumerate().map(|(index, layer)| {
            let head = |_| HeadCache::new(Segment::growing(index, 0, capacity_tokens));
            LayerCache { heads: (0..layer.kv_heads).map(head).collect() }
        });
        let evidence = methods.iter().fold(Evidence::NONE, |all, method| all.union(method.evidence()));
        let window = store.shape().layers.iter().map(|_| WindowQueries::default()).collect();
        Self {
            layers: layers.collect(),
            len: 0,
            prompt_tokens: 0,
            turns: 0,
            rewritten_tokens: 0,
            capacity_tokens,
            methods,
            pipeline,
            evidence,
            window,
            returned,
        }
    }

    /// Tokens committed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first commit.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that the sequence can hold in all.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// Bytes of RAM that the sequence's blocks take, where a block with several holders counts in equal parts, and what methods
    /// keep beside them.
    pub fn used_bytes(&self, store: &KvStore) -> usize {
        let blocks: usize = self.segments().map(|segment| segment.used_bytes(store)).sum();
        blocks + self.methods.iter().map(|method| method.used_bytes()).sum::<usize>()
    }

    /// Bytes of files that the sequence's blocks take, those that are in RAM as well included; a block with several holders
    /// counts in equal parts.
    pub fn file_bytes(&self, store: &KvStore) -> usize {
        self.segments().map(|segment| segment.file_bytes(store)).sum()
    }

    /// What the methods want to be gathered.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }

    /// True if a method wants to see queries before they attend.
    pub fn selects(&self) -> bool {
        self.methods.iter().any(|method| method.selects())
    }

    /// Takes the blocks for `tokens` more tokens at every layer and head.
    ///
    /// # Errors
    /// [`CacheError::Full`] when the store has too few; blocks taken so far stay with the sequence. [`CacheError::Spill`] if the
    /// last tile lies in a file and cannot be read; as for [`Self::bring_visited`].
    pub fn reserve(&mut self, store: &mut KvStore, tokens: usize) -> Result<(), CacheError> {
        let mut heads = self.layers.iter_mut().flat_map(|layer| &mut layer.heads);
        heads.try_for_each(|head| head.growing().reserve(store, tokens)).map_err(|error| match error {
            CacheError::Spill(_) => self.spoilt(error),
            error => error,
        })
    }

    /// Writes the rows of new tokens at `layer`, at the positions that follow the committed ones.
    ///
    /// - `keys`: `[tokens, kv_heads, key_dim]`, rotated;
    /// - `values`: `[tokens, kv_heads, value_dim]`.
    ///
    /// # Panics
    /// If the slices do not fit the layer, or room was not reserved.
    pub fn append(
        &mut self,
        pool: &ThreadPool,
        store: &mut KvStore,
        layer: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let shape = store.layer(layer);
        let (kv_heads, tile) = (shape.kv_heads, shape.tile());
        let tokens = keys.len() / (kv_heads * tile.key_dim);
        assert_eq!(keys.len(), tokens * kv_heads * tile.key_dim);
        assert_eq!(values.len(), tokens * kv_heads * tile.value_dim);
        let heads = &mut self.layers[layer].heads;
        {
            let writer = store.writer();
            let first_tile = |head: usize| heads[head].last().end() / TILE_TOKENS;
            let tiles = (0..kv_heads)
                .map(|head| (heads[head].last().end() + tokens).div_ceil(TILE_TOKENS) - first_tile(head))
                .max()
                .unwrap_or(0);
            // One piece is one tile of one head, so pieces never share a block.
            let write_tile = |piece: usize| {
                let (head, segment) = (piece / tiles, heads[piece / tiles].last());
                let start = (first_tile(head) + piece % tiles) * TILE_TOKENS;
                let end = (segment.end() + tokens).min(start + TILE_TOKENS);
                let rows = start.max(segment.end())..end;
                if rows.is_empty() {
                    return;
                }
                let blocks = segment.blocks_of(start);
                for (plane, block, numbers) in
                    [(PlaneKind::Keys, blocks[0], keys), (PlaneKind::Values, blocks[1], values)]
                {
                    let (dim, len) = tile.plane(plane);
                    writer.with_rows(block, len, |target| {
                        for row in rows.clone() {
                            let index = (row - segment.end()) * kv_heads + head;
                            let source = &numbers[index * dim..(index + 1) * dim];
                            tile.write_row(plane, target, row % TILE_TOKENS, source);
                        }
                    });
                }
            };
            let grain = if tokens * kv_heads < SERIAL_ROWS { usize::MAX } else { 1 };
            pool.for_each_piece(kv_heads * tiles, grain, |pieces| pieces.for_each(&write_tile));
        }
        for head in heads {
            head.growing().grow(tokens, self.len as u32);
        }
    }

    /// Lets the methods see the queries that are about to attend at `layer`.
    ///
    /// # Errors
    /// [`CacheError`] from a method.
    pub fn before_attention(
        &mut self,
        pool: &ThreadPool,
        store: &mut KvStore,
        layer: usize,
        queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        if !self.selects() {
            return Ok(());
        }
        let new_tokens = queries.positions.len();
        self.open(pool, store, new_tokens, |method, cache| method.before_attention(cache, layer, queries))
    }

    /// Brings into RAM what the queries at `layer` visit and a file holds: after [`Self::before_attention`] of every sequence
    /// of a pass, for what sequences share moves for all of them.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if something cannot be read. The sequence is then forgotten when it is next cut.
    pub fn bring_visited(&mut self, store: &mut KvStore, layer: usize) -> Result<(), CacheError> {
        if !store.has_away() {
            return Ok(());
        }
        let heads = &self.layers[layer].heads;
        let brought = store.bring_all(heads.iter().flat_map(HeadCache::visited_blocks));
        brought.map_err(|error| self.spoilt(error))
    }

    /// Takes in what the methods want to know of the rows that have just attended at `layer`; `log_sum_exp` is
    /// `[rows, heads]`.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if keys that were not visited lie in a file and cannot be read; as for [`Self::bring_visited`].
    pub fn observe(
        &mut self,
        pool: &ThreadPool,
        store: &KvStore,
        layer: usize,
        queries: StepQueries<'_>,
        log_sum_exp: &[f32],
    ) -> Result<(), CacheError> {
        if store.layer(layer).window.is_some() {
            return Ok(());
        }
        if self.evidence.window > 0 && queries.phase == Phase::Prefill {
            self.window[layer].push(&queries, log_sum_exp, self.evidence.window);
        }
        let heads = &mut self.layers[layer].heads;
        let gathered = evidence::gather(pool, store, heads, self.evidence, &queries, log_sum_exp);
        gathered.map_err(|error| self.spoilt(error))
    }

    /// Counts the `tokens` that were appended at every layer, gives back what sliding windows have left behind, and lets the
    /// methods rewrite.
    ///
    /// # Errors
    /// [`CacheError`] from a method. The tokens are counted all the same; the next [`Self::truncate`] forgets the sequence.
    pub fn commit(
        &mut self,
        pool: &ThreadPool,
        store: &mut KvStore,
        tokens: usize,
        phase: Phase,
    ) -> Result<(), CacheError> {
        self.len += tokens;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let Some(window) = store.layer(index).window else { continue };
            // The next query, at position `len`, sees positions from here on.
            let first_seen = (self.len + 1).saturating_sub(window) as u32;
            for head in &mut layer.heads {
                head.growing().drop_before(store, first_seen);
            }
        }
        if self.methods.is_empty() {
            return Ok(());
        }
        let result = match phase {
            Phase::Prefill => {
                self.prompt_tokens += tokens;
                let rows = self.rows();
                let result = self.open(pool, store, tokens, |method, cache| method.after_chunk(cache));
                if self.rows() < rows {
                    self.rewritten_tokens = self.rewritten_tokens.max(self.len);
                }
                result
            }
            Phase::Decode => self.open(pool, store, tokens, |method, cache| method.after_step(cache)),
        };
        self.close_gaps();
        result
    }

    /// Says that the prompt has been read to its end: methods that wait for that rewrite now.
    ///
    /// # Errors
    /// [`CacheError`] from a method; the next [`Self::truncate`] then forgets the sequence.
    pub fn end_of_prompt(&mut self, pool: &ThreadPool, store: &mut KvStore) -> Result<(), CacheError> {
        if self.methods.is_empty() {
            return Ok(());
        }
        let (turn, prompt_tokens) = (self.turns, self.prompt_tokens);
        let result = self.open(pool, store, prompt_tokens, |method, cache| method.end_of_prompt(cache, turn));
        self.close_gaps();
        self.window.iter_mut().for_each(WindowQueries::clear);
        self.turns += 1;
        if self.methods.iter().any(|method| method.rewrites()) {
            self.rewritten_tokens = self.rewritten_tokens.max(self.len);
        }
        self.prompt_tokens = 0;
        store.trim();
        result
    }

    /// Lets the rows of heads that want it stand without gaps again.
    fn close_gaps(&mut self) {
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            head.close_gaps(self.len as u32);
        }
    }

    /// Runs `hook` for each method, in the pipeline's order.
    fn open(
        &mut self,
        pool: &ThreadPool,
        store: &mut KvStore,
        new_tokens: usize,
        mut hook: impl FnMut(&mut dyn Method, &mut OpenCache<'_>) -> Result<(), CacheError>,
    ) -> Result<(), CacheError> {
        for method in &mut self.methods {
            let mut cache = OpenCache {
                pool,
                store,
                layers: &mut self.layers,
                window: &self.window,
                tokens: self.len,
                new_tokens,
                encoded: Vec::new(),
                unread: OnceLock::new(),
            };
            let result = hook(&mut **method, &mut cache);
            if let Err(error) = result.and(cache.unread.take().map_or(Ok(()), Err)) {
                return Err(self.spoilt(error));
            }
        }
        Ok(())
    }

    /// After an error rows may be missing: what is left serves no query, and is forgotten when the sequence is next cut. What could
    /// not be written to a file is still in RAM.
    fn spoilt(&mut self, error: CacheError) -> CacheError {
        if !matches!(error, CacheError::Spill(SpillError::Write { .. })) {
            self.rewritten_tokens = usize::MAX;
        }
        error
    }

    /// Forgets all tokens from position `len` on, those of a step that was not committed included. Returns how many
    /// remain: `len`, or 0 when the shorter sequence is not to be had, because a sliding window has already given back rows
    /// that it needs or methods have rewritten a longer prompt, and the whole sequence was forgotten instead.
    ///
    /// What a method drops while decoding does not come back.
    pub fn truncate(&mut self, store: &mut KvStore, len: usize) -> usize {
        let len = len.min(self.len);
        let mut whole = len >= self.rewritten_tokens;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let needed_from = store.layer(index).window.map_or(0, |window| (len + 1).saturating_sub(window));
            for head in &mut layer.heads {
                whole &= head.truncate(store, len as u32, needed_from as u32);
            }
        }
        if whole && len > 0 {
            self.len = len;
            self.methods.iter_mut().for_each(|method| method.truncated(len));
        } else {
            self.clear();
        }
        self.len
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let mut returned = self.returned.lock();
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            for segment in head.segments.iter_mut().chain(&mut head.copies) {
                returned.extend(segment.take_blocks());
            }
            head.segments.truncate(1);
            head.copies.clear();
            head.statistics = Default::default();
            head.visits = None;
            head.turns = None;
        }
        drop(returned);
        self.window.iter_mut().for_each(WindowQueries::clear);
        (self.len, self.prompt_tokens, self.turns, self.rewritten_tokens) = (0, 0, 0, 0);
        self.methods.iter_mut().for_each(|method| method.truncated(0));
    }

    /// A second sequence with the same past. Blocks are shared until one of the two changes them.
    pub fn fork(&self, store: &mut KvStore) -> Self {
        let layers = self.layers.iter().map(|layer| LayerCache {
            heads: layer.heads.iter().map(|head| head.fork(store, self.capacity_tokens)).collect(),
        });
        Self {
            layers: layers.collect(),
            len: self.len,
            prompt_tokens: self.prompt_tokens,
            turns: self.turns,
            rewritten_tokens: self.rewritten_tokens,
            capacity_tokens: self.capacity_tokens,
            methods: self.methods.iter().map(|method| method.fork()).collect(),
            pipeline: self.pipeline.clone(),
            evidence: self.evidence,
            window: self.window.clone(),
            returned: self.returned.clone(),
        }
    }

    /// Puts `segment` in front of the growing segment of a head: rows that a method chose, merged or brought from
    /// elsewhere.
    pub fn insert_segment(&mut self, layer: usize, kv_head: usize, segment: Segment) {
        let segments = &mut self.layers[layer].heads[kv_head].segments;
        segments.insert(segments.len() - 1, segment);
    }

    /// Segments of a head, in the order in which attention folds them.
    pub fn head(&self, layer: usize, kv_head: usize) -> &[Segment] {
        &self.layers[layer].heads[kv_head].segments
    }

    pub(crate) fn head_cache(&self, layer: usize, kv_head: usize) -> &HeadCache {
        &self.layers[layer].heads[kv_head]
    }

    /// Rows of all heads.
    fn rows(&self) -> usize {
        self.segments().map(Segment::len).sum()
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.layers.iter().flat_map(|layer| &layer.heads).flat_map(HeadCache::all_segments)
    }
}

impl Drop for SequenceCache {
    fn drop(&mut self) {
        self.clear();
    }
}
