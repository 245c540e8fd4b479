//! The blocks of all sequences.
//!
//! A block is one tile of one head. Layers with equal head dimensions share a pool. The store reserves address space
//! for its capacity; memory is taken when a block is first used. A sequence that is dropped leaves its blocks in a
//! return list, and the store takes them back when it next hands out or counts.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use kvik_kernels::attention::{TILE_TOKENS, TileShape};
use kvik_memory::{BlockId, BlockPool, Owner, PoolExhausted};

use crate::{KvShape, LayerShape, SequenceCache};

/// Why a store cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KvStoreError {
    /// The system refused the address space.
    #[error(
        "cannot reserve {bytes} bytes of address space for the KV cache: {source}; use a smaller context"
    )]
    Reserve {
        /// Bytes asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

/// A block and the pool that it belongs to.
pub(crate) type PooledBlock = (usize, BlockId);

/// Blocks that dropped sequences left behind.
#[derive(Clone, Default)]
pub(crate) struct ReturnList(Arc<Mutex<Vec<PooledBlock>>>);

impl ReturnList {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<PooledBlock>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Storage of cached keys and values.
pub struct KvStore {
    shape: KvShape,
    pools: Vec<Pool>,
    /// Per layer, the index of its pool.
    layer_pools: Vec<usize>,
    capacity_tokens: usize,
    returned: ReturnList,
}

struct Pool {
    tile: TileShape,
    blocks: BlockPool,
}

impl KvStore {
    /// Room for `sequences` sequences of up to `capacity_tokens` tokens each, of which up to `step_tokens` are added
    /// at once. Sliding-window layers need room for their window and one step only.
    ///
    /// # Errors
    /// [`KvStoreError::Reserve`] if the system refuses the address space.
    pub fn new(
        shape: KvShape,
        sequences: usize,
        capacity_tokens: usize,
        step_tokens: usize,
    ) -> Result<Self, KvStoreError> {
        let mut tiles: Vec<(TileShape, usize)> = Vec::new();
        let mut layer_pools = Vec::with_capacity(shape.layers.len());
        for layer in &shape.layers {
            let kept = layer.window.map_or(capacity_tokens, |window| {
                // A window and a step may each start and end inside a tile.
                capacity_tokens.min(window.saturating_add(step_tokens).saturating_add(TILE_TOKENS))
            });
            let blocks = sequences.saturating_mul(layer.kv_heads).saturating_mul(kept.div_ceil(TILE_TOKENS));
            let pool = tiles.iter().position(|(tile, _)| *tile == layer.tile()).unwrap_or_else(|| {
                tiles.push((layer.tile(), 0));
                tiles.len() - 1
            });
            tiles[pool].1 = tiles[pool].1.saturating_add(blocks);
            layer_pools.push(pool);
        }
        let pools = tiles.into_iter().map(|(tile, blocks)| {
            let bytes = tile.tile_bytes().saturating_mul(blocks);
            BlockPool::reserve(tile.tile_bytes(), blocks, Owner::KvCache)
                .map(|blocks| Pool { tile, blocks })
                .map_err(|source| KvStoreError::Reserve { bytes, source })
        });
        let pools = pools.collect::<Result<_, _>>()?;
        Ok(Self { shape, pools, layer_pools, capacity_tokens, returned: ReturnList::default() })
    }

    /// What this store caches.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Tokens that one sequence can hold.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// A new, empty sequence.
    pub fn sequence(&self) -> SequenceCache {
        SequenceCache::new(self, self.returned.clone())
    }

    /// Bytes of the blocks in use.
    pub fn used_bytes(&self) -> usize {
        let used: usize = self.pools.iter().map(|pool| pool.blocks.used_bytes()).sum();
        let returned: usize = self.returned.lock().iter().map(|&(pool, _)| self.block_bytes(pool)).sum();
        used - returned
    }

    pub(crate) fn layer(&self, layer: usize) -> LayerShape {
        self.shape.layers[layer]
    }

    pub(crate) fn pool_of(&self, layer: usize) -> usize {
        self.layer_pools[layer]
    }

    pub(crate) fn block_bytes(&self, pool: usize) -> usize {
        self.pools[pool].blocks.block_bytes()
    }

    /// Takes a block whose numbers are all finite.
    pub(crate) fn take(&mut self, pool: usize) -> Result<BlockId, PoolExhausted> {
        for (pool, block) in self.returned.lock().drain(..) {
            self.pools[pool].blocks.give_back(block);
        }
        let blocks = &mut self.pools[pool].blocks;
        let block = blocks.take()?;
        blocks.block_mut(block).fill(0);
        Ok(block)
    }

    pub(crate) fn give_back(&mut self, pool: usize, block: BlockId) {
        self.pools[pool].blocks.give_back(block);
    }

    pub(crate) fn blocks_mut(&mut self, pool: usize) -> &mut BlockPool {
        &mut self.pools[pool].blocks
    }

    /// Keys and values of a block.
    pub(crate) fn tile(&self, pool: usize, block: BlockId) -> (&[u16], &[u16]) {
        let Pool { tile, blocks } = &self.pools[pool];
        let numbers: &[u16] = bytemuck::cast_slice(blocks.block(block));
        let (keys, values) = numbers.split_at(tile.key_len());
        (keys, &values[..tile.value_len()])
    }
}

/// Keys and values of a block's bytes, to write.
pub(crate) fn tile_mut(tile: TileShape, block: &mut [u8]) -> (&mut [u16], &mut [u16]) {
    let numbers: &mut [u16] = bytemuck::cast_slice_mut(block);
    let (keys, values) = numbers.split_at_mut(tile.key_len());
    (keys, &mut values[..tile.value_len()])
}
