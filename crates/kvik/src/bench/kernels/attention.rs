//! Attention over a bf16 cache: one query token deep in a sequence, and a chunk of a prompt.

use std::{iter::repeat_with, ops::Range};

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{
        AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Positions, Reach, StoredTile,
        TILE_TOKENS, Tile, TileShape, attend,
    },
};

use super::{Kernel, KernelOptions, activations, copies_beyond_cache};
use crate::bench::work::{PassShape, Work, add_attention};

/// Heads of a model, with what is asked of them.
pub(super) struct Case {
    name: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Cached tokens at the end, the query tokens among them.
    tokens: usize,
    query_tokens: usize,
}

/// Heads as SmolLM2 135M and Gemma 3 270M have them.
pub(super) const CASES: [Case; 4] = [
    Case { name: "9 heads of 64 on 3", heads: 9, kv_heads: 3, head_dim: 64, tokens: 8192, query_tokens: 1 },
    Case { name: "4 heads of 256 on 1", heads: 4, kv_heads: 1, head_dim: 256, tokens: 8192, query_tokens: 1 },
    Case { name: "9 heads of 64 on 3", heads: 9, kv_heads: 3, head_dim: 64, tokens: 2048, query_tokens: 512 },
    Case {
        name: "4 heads of 256 on 1",
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        tokens: 2048,
        query_tokens: 512,
    },
];

/// The attention of `case`, if it is wanted.
pub(super) fn kernels<'a>(pool: &'a ThreadPool, options: &KernelOptions, case: &Case) -> Vec<Kernel<'a>> {
    let &Case { name, heads, kv_heads, head_dim, tokens, query_tokens } = case;
    let name = format!("attention {name}, {query_tokens} of {tokens} tokens");
    if !options.wants(&name) {
        return Vec::new();
    }
    let shape = AttentionShape {
        heads,
        kv_heads,
        tile: TileShape { key_dim: head_dim, value_dim: head_dim },
        scale: 1.0 / (head_dim as f32).sqrt(),
        reach: Reach::CAUSAL,
    };
    let start = tokens - query_tokens;
    let mut work = Work::default();
    add_attention(
        &mut work,
        &shape,
        PassShape { sequences: 1, start, tokens: query_tokens, phase: Phase::Prefill, logits: false },
    );

    let copies = copies_beyond_cache(work.bytes as usize);
    let caches: Vec<Cache> = repeat_with(|| Cache::new(&shape, tokens, query_tokens)).take(copies).collect();
    let queries = activations(query_tokens * heads * head_dim);
    let positions: Vec<u32> = (start as u32..tokens as u32).collect();
    let mut out = vec![0.0; queries.len()];
    let mut scratch = AttentionScratch::new(pool.threads(), &shape, tokens);
    let (isa, mut next) = (options.isa, 0);
    let call = Box::new(move || {
        let cache = &caches[next];
        next = (next + 1) % caches.len();
        let rows =
            AttentionRows { queries: &queries, positions: &positions, out: &mut out, log_sum_exp: None };
        attend(pool, isa, &shape, rows, cache, &mut scratch);
    });
    vec![Kernel { name, work, call }]
}

/// One layer's cache of one sequence.
struct Cache {
    /// Head after head, tile after tile, keys before values; aligned from [`Self::start`] on.
    numbers: Vec<u16>,
    start: usize,
    tile: TileShape,
    tokens: usize,
    query_tokens: usize,
}

impl Cache {
    fn new(shape: &AttentionShape, tokens: usize, query_tokens: usize) -> Self {
        /// A cache line, in numbers.
        const LINE: usize = 32;
        /// 0.75 in bf16.
        const NUMBER: u16 = 0x3F40;
        let tile = shape.tile;
        let len = shape.kv_heads * tokens.div_ceil(TILE_TOKENS) * (tile.key_len() + tile.value_len());
        let numbers = vec![NUMBER; len + LINE];
        let start = numbers.as_ptr().align_offset(2 * LINE).min(LINE);
        Self { numbers, start, tile, tokens, query_tokens }
    }
}

impl CachedTiles for Cache {
    fn sequences(&self) -> usize {
        1
    }

    fn rows(&self, _sequence: usize) -> Range<usize> {
        0..self.query_tokens
    }

    fn phase(&self, _sequence: usize) -> Phase {
        if self.query_tokens > 1 { Phase::Prefill } else { Phase::Decode }
    }

    fn tiles(&self, _sequence: usize, _kv_head: usize) -> usize {
        self.tokens.div_ceil(TILE_TOKENS)
    }

    fn tile(&self, sequence: usize, kv_head: usize, index: usize) -> Option<StoredTile<'_>> {
        let (key_len, value_len) = (self.tile.key_len(), self.tile.value_len());
        let index_of_all = kv_head * self.tiles(sequence, kv_head) + index;
        let numbers = &self.numbers[self.start + index_of_all * (key_len + value_len)..];
        let (keys, rest) = numbers.split_at(key_len);
        let first = index * TILE_TOKENS;
        let tile = Tile {
            keys,
            values: &rest[..value_len],
            len: (self.tokens - first).min(TILE_TOKENS),
            positions: Positions::From(first as u32),
            bias: None,
        };
        Some(tile.into())
    }
}
