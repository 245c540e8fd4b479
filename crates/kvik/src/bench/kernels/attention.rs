//! Attention over a bf16 cache: one query token deep in a sequence, and a chunk of a prompt.
//!
//! The one token attends over caches that are stored otherwise as well, in turns with the bf16 one: over codes, of which there is
//! less to read, and which are decoded on the way; and over directions with lengths beside them.

use std::{iter::repeat_with, ops::Range};

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{
        Affine, AttentionRows, AttentionScratch, AttentionShape, CachedTiles, Codec, PlaneKind, Positions,
        Reach, RowScales, StoredPlane, StoredTile, TILE_TOKENS, TileShape, attend,
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

/// How a cache is stored.
#[derive(Clone, Copy)]
enum Storage {
    /// Rows in bf16.
    Rows,
    /// Directions in bf16, with lengths beside them.
    Directions,
    /// Codes, in groups of 32, as KIVI's.
    Codes(Affine),
}

impl Storage {
    fn in_words(self) -> String {
        match self {
            Self::Rows => String::new(),
            Self::Directions => " in directions".into(),
            Self::Codes(codec) => format!(" in {}", codec.name()),
        }
    }
}

/// The attention of `case` over caches of every kind, as far as they are wanted; the others are compared with that in bf16.
pub(super) fn kernels<'a>(pool: &'a ThreadPool, options: &KernelOptions, case: &Case) -> Vec<Kernel<'a>> {
    let codes = |bits| Storage::Codes(Affine::new(bits, 32).on(options.isa));
    let mut kernels: Vec<Kernel<'a>> = kernel(pool, options, case, Storage::Rows).into_iter().collect();
    if case.query_tokens == 1 {
        let compared = !kernels.is_empty();
        let others = [Storage::Directions, codes(4), codes(2)].into_iter();
        let others = others.filter_map(|storage| kernel(pool, options, case, storage));
        kernels.extend(others.map(|kernel| Kernel { compared, ..kernel }));
    }
    kernels
}

fn kernel<'a>(
    pool: &'a ThreadPool,
    options: &KernelOptions,
    case: &Case,
    storage: Storage,
) -> Option<Kernel<'a>> {
    let &Case { name, heads, kv_heads, head_dim, tokens, query_tokens } = case;
    let name = format!("attention {name}, {query_tokens} of {tokens} tokens{}", storage.in_words());
    if !options.wants(&name) {
        return None;
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
    let cache = || Cache::new(&shape, tokens, query_tokens, storage);
    if !matches!(storage, Storage::Rows) {
        work.bytes = cache().bytes as f64;
    }

    let copies = copies_beyond_cache(work.bytes as usize);
    let caches: Vec<Cache> = repeat_with(cache).take(copies).collect();
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
    Some(Kernel { name, work, compared: false, call })
}

/// One layer's cache of one sequence.
struct Cache {
    /// Head after head, tile after tile, keys before values; aligned from [`Self::start`] on.
    numbers: Vec<u16>,
    start: usize,
    /// Length of each row's key and value, if the rows are directions.
    lengths: Option<[Vec<f32>; 2]>,
    /// Without the padding.
    bytes: usize,
    codec: Option<Affine>,
    tile: TileShape,
    tokens: usize,
    query_tokens: usize,
}

impl Cache {
    fn new(shape: &AttentionShape, tokens: usize, query_tokens: usize, storage: Storage) -> Self {
        /// A cache line, in numbers.
        const LINE: usize = 32;
        let tile = shape.tile;
        let codec = match storage {
            Storage::Codes(codec) => Some(codec),
            Storage::Rows | Storage::Directions => None,
        };
        let planes = [PlaneKind::Keys, PlaneKind::Values].map(|plane| plane_of(tile, plane, codec));
        let tiles = shape.kv_heads * tokens.div_ceil(TILE_TOKENS);
        let len = tiles * (planes[0].len() + planes[1].len());
        let mut numbers: Vec<u16> = Vec::with_capacity(len + LINE);
        let start = numbers.as_ptr().align_offset(2 * LINE).min(LINE);
        numbers.resize(start, 0);
        (0..tiles).for_each(|_| planes.iter().for_each(|plane| numbers.extend_from_slice(plane)));
        let lengths =
            matches!(storage, Storage::Directions).then(|| [(); 2].map(|()| vec![0.75; tiles * TILE_TOKENS]));
        let bytes = 2 * len + lengths.as_ref().map_or(0, |[keys, values]| 4 * (keys.len() + values.len()));
        Self { numbers, start, lengths, bytes, codec, tile, tokens, query_tokens }
    }
}

/// A plane of a tile as it is stored, in numbers of 16 bits.
fn plane_of(tile: TileShape, plane: PlaneKind, codec: Option<Affine>) -> Vec<u16> {
    /// 0.75 in bf16.
    const NUMBER: u16 = 0x3F40;
    let (dim, len) = tile.plane(plane);
    let Some(codec) = codec else { return vec![NUMBER; len] };
    let mut block = vec![0u8; codec.block_bytes(plane, dim)];
    codec.encode(plane, dim, 0, &activations(TILE_TOKENS * dim), &mut block);
    block.chunks_exact(2).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]])).collect()
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
        let len_of = |plane: PlaneKind| {
            let (dim, len) = self.tile.plane(plane);
            self.codec.map_or(len, |codec| codec.block_bytes(plane, dim) / 2)
        };
        let (key_len, value_len) = (len_of(PlaneKind::Keys), len_of(PlaneKind::Values));
        let index_of_all = kv_head * self.tiles(sequence, kv_head) + index;
        let numbers = &self.numbers[self.start + index_of_all * (key_len + value_len)..];
        let (keys, rest) = numbers.split_at(key_len);
        let plane = |numbers| match &self.codec {
            None => StoredPlane::Rows(numbers),
            Some(codec) => StoredPlane::Encoded {
                codec,
                block: bytemuck::cast_slice(numbers),
                rows: TILE_TOKENS,
                rest: None,
            },
        };
        let first = index * TILE_TOKENS;
        Some(StoredTile {
            keys: plane(keys),
            values: plane(&rest[..value_len]),
            len: (self.tokens - first).min(TILE_TOKENS),
            positions: Positions::From(first as u32),
            bias: None,
            scales: self.lengths.as_ref().map(|[keys, values]| {
                let rows = index_of_all * TILE_TOKENS..(index_of_all + 1) * TILE_TOKENS;
                RowScales { keys: &keys[rows.clone()], values: &values[rows] }
            }),
            rotation: None,
            shifts: None,
        })
    }
}
