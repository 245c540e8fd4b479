//! One sequence's cache, over all layers and heads.

use kvik_kernels::{ThreadPool, attention::TILE_TOKENS};
use kvik_memory::PoolExhausted;

use crate::{
    Segment,
    store::{KvStore, ReturnList, tile_mut},
};

/// Rows of keys below which one thread writes them alone.
const SERIAL_ROWS: usize = 64;

/// Cached keys and values of one sequence.
///
/// A step of `n` tokens is written as `reserve(n)`, then `append` once per layer, then `commit(n)`. After an error the
/// sequence is as it was after its last commit once [`Self::truncate`] to [`Self::len`] was called.
pub struct SequenceCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity_tokens: usize,
    returned: ReturnList,
}

struct LayerCache {
    heads: Vec<HeadCache>,
}

/// The segments of one layer and KV head, in the order in which attention folds them.
struct HeadCache {
    segments: Vec<Segment>,
}

impl SequenceCache {
    pub(crate) fn new(store: &KvStore, returned: ReturnList) -> Self {
        let capacity_tokens = store.capacity_tokens();
        let head = |layer| HeadCache { segments: vec![Segment::growing(store, layer, 0, capacity_tokens)] };
        let layers = store.shape().layers.iter().enumerate();
        let layers = layers
            .map(|(index, layer)| LayerCache { heads: (0..layer.kv_heads).map(|_| head(index)).collect() });
        Self { layers: layers.collect(), len: 0, capacity_tokens, returned }
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

    /// Bytes of the blocks that the sequence holds.
    pub fn used_bytes(&self, store: &KvStore) -> usize {
        self.segments().map(|segment| segment.used_bytes(store)).sum()
    }

    /// Takes the blocks for `tokens` more tokens at every layer and head.
    ///
    /// # Errors
    /// [`PoolExhausted`] when the store has too few; blocks taken so far stay with the sequence.
    pub fn reserve(&mut self, store: &mut KvStore, tokens: usize) -> Result<(), PoolExhausted> {
        for layer in &mut self.layers {
            for head in &mut layer.heads {
                head.growing().reserve(store, tokens)?;
            }
        }
        Ok(())
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
            let writer = store.blocks_mut(store.pool_of(layer)).writer();
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
                writer.with_block(segment.block_of(start), |bytes| {
                    let (tile_keys, tile_values) = tile_mut(tile, bytes);
                    for row in rows {
                        let index = (row - segment.end()) * kv_heads + head;
                        let key = &keys[index * tile.key_dim..(index + 1) * tile.key_dim];
                        let value = &values[index * tile.value_dim..(index + 1) * tile.value_dim];
                        tile.write(tile_keys, tile_values, row % TILE_TOKENS, key, value);
                    }
                });
            };
            let grain = if tokens * kv_heads < SERIAL_ROWS { usize::MAX } else { 1 };
            pool.for_each_piece(kv_heads * tiles, grain, |pieces| pieces.for_each(&write_tile));
        }
        for head in heads {
            head.growing().grow(tokens);
        }
    }

    /// Counts the `tokens` that were appended at every layer, and gives back what sliding windows have left behind.
    pub fn commit(&mut self, store: &mut KvStore, tokens: usize) {
        self.len += tokens;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let Some(window) = store.layer(index).window else { continue };
            // The next query, at position `len`, sees positions from here on.
            let first_seen = (self.len + 1).saturating_sub(window) as u32;
            for head in &mut layer.heads {
                head.growing().drop_before(store, first_seen);
            }
        }
    }

    /// Forgets all tokens from position `len` on, those of a step that was not committed included. Returns how many
    /// remain: `len`, or 0 when a sliding window has already given back rows that the shorter sequence needs, and the
    /// whole sequence was forgotten instead.
    pub fn truncate(&mut self, store: &mut KvStore, len: usize) -> usize {
        let len = len.min(self.len);
        let mut whole = true;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let needed_from = store.layer(index).window.map_or(0, |window| (len + 1).saturating_sub(window));
            for segment in layer.heads.iter_mut().flat_map(|head| &mut head.segments) {
                whole &= segment.truncate(store, len as u32, needed_from as u32);
            }
        }
        if whole {
            self.len = len;
        } else {
            self.clear();
        }
        self.len
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let mut returned = self.returned.lock();
        for head in self.layers.iter_mut().flat_map(|layer| &mut layer.heads) {
            for segment in &mut head.segments {
                returned.extend(segment.take_blocks());
            }
            head.segments.truncate(1);
        }
        drop(returned);
        self.len = 0;
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

    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.layers.iter().flat_map(|layer| &layer.heads).flat_map(|head| &head.segments)
    }
}

impl HeadCache {
    /// The last segment: new tokens go there.
    fn last(&self) -> &Segment {
        &self.segments[self.segments.len() - 1]
    }

    fn growing(&mut self) -> &mut Segment {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }
}

impl Drop for SequenceCache {
    fn drop(&mut self) {
        self.clear();
    }
}
