//! The blocks of all sequences.
//!
//! A block holds one plane (keys or values) of one tile of one head, as bf16 rows or in some codec's encoding. Blocks of one
//! size share a pool; a pool reserves address space for its capacity, and memory is taken when a block is first used. What
//! holds a block knows it by its handle only, so a block may have several holders (shared prefixes, layers that share what
//! they store) and may move, to a file and back ([`spilled`](crate::spilled)). A sequence that is dropped leaves its blocks in a
//! return list, and the store takes them back when it next hands out or counts.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use kvik_kernels::attention::{PlaneKind, TILE_TOKENS, Turns};
use kvik_memory::{BlockId, BlockPool, BlockWriter, Owner, PoolExhausted, SpillError};

use crate::{
    KvShape, LayerShape, Method, SequenceCache,
    spilled::Spilled,
    tally::{Encoding, Tally},
};

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

/// Why a cache cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store has no room.
    #[error("the KV cache is full: {0}")]
    Full(#[from] PoolExhausted),
    /// The system refused address space for blocks of another size.
    #[error(transparent)]
    Store(#[from] KvStoreError),
    /// A block cannot be written to a file, or read back.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// A method of the pipeline cannot go on.
    #[error("{method}: {reason}")]
    Method {
        /// Its name.
        method: &'static str,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A cache cannot be exported.
    #[error("the cache cannot be exported: {0}")]
    Export(&'static str),
    /// An exported cache cannot be read.
    #[error("the exported cache cannot be used: {0}")]
    Import(String),
    /// Reading or writing failed.
    #[error("{what}: {source}")]
    Io {
        /// What was to be read or written.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Handle of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block(u32);

impl Block {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of the pool that holds blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SizeClass(pub(crate) u16);

/// Where a block lies and who holds it.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) class: SizeClass,
    pub(crate) encoding: Encoding,
    holders: u32,
    pub(crate) place: Place,
}

/// Where a block lies.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In its pool.
    Pool(BlockId),
    /// In RAM, read back from a file that still holds it.
    Loose(u32),
    /// In a file only.
    Away,
}

/// Blocks that dropped sequences left behind.
#[derive(Clone, Default)]
pub(crate) struct ReturnList(Arc<Mutex<Vec<Block>>>);

impl ReturnList {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Block>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Storage of cached keys and values.
pub struct KvStore {
    shape: KvShape,
    pub(crate) pools: Vec<BlockPool>,
    pub(crate) spilled: Spilled,
    pub(crate) tally: Tally,
    /// By handle; a handle that is not in use stands in `free`.
    table: Vec<Option<Entry>>,
    free: Vec<Block>,
    /// Per layer, where its planes' bf16 rows go.
    classes: Vec<[SizeClass; 2]>,
    /// Planes of all sequences that fill their context.
    most_planes: usize,
    capacity_tokens: usize,
    returned: ReturnList,
    /// Rotations that move keys, one for each kind that was asked for.
    turns: Vec<Arc<Turns>>,
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
        let mut sizes: Vec<(usize, usize)> = Vec::new();
        let mut classes = Vec::with_capacity(shape.layers.len());
        for layer in &shape.layers {
            let kept = layer.kept_tokens(capacity_tokens, step_tokens);
            // A method may put a segment of its own in front of the growing one, whose last tile is another.
            let tiles = kept.div_ceil(TILE_TOKENS).saturating_add(1);
            let blocks = sequences.saturating_mul(layer.kv_heads).saturating_mul(tiles);
            classes.push([PlaneKind::Keys, PlaneKind::Values].map(|plane| {
                let bytes = layer.plane_bytes(plane);
                let class = sizes.iter().position(|(size, _)| *size == bytes).unwrap_or_else(|| {
                    sizes.push((bytes, 0));
                    sizes.len() - 1
                });
                sizes[class].1 = sizes[class].1.saturating_add(blocks);
                SizeClass(class as u16)
            }));
        }
        let most_planes = sizes.iter().fold(0usize, |sum, (_, blocks)| sum.saturating_add(*blocks));
        let pools =
            sizes.into_iter().map(|(bytes, blocks)| reserve(bytes, blocks)).collect::<Result<_, _>>()?;
        Ok(Self {
            shape,
            pools,
            spilled: Spilled::default(),
            tally: Tally::default(),
            // Twice as many handles as planes: what is rewritten stands beside its new form for a moment.
            table: Vec::with_capacity(most_planes.saturating_mul(2).min(1 << 24)),
            free: Vec::with_capacity(most_planes.saturating_mul(2).min(1 << 24)),
            classes,
            most_planes,
            capacity_tokens,
            returned: ReturnList::default(),
            turns: Vec::new(),
        })
    }

    /// What this store caches.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Tokens that one sequence can hold.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// A new, empty sequence that keeps every token as it is.
    pub fn sequence(&self) -> SequenceCache {
        SequenceCache::new(self, self.returned.clone(), Vec::new(), Some(crate::Pipeline::full().to_string()))
    }

    /// A new, empty sequence whose cache the methods of `pipeline` rewrite.
    ///
    /// # Errors
    /// [`CacheError::Method`] if a method does not fit this model.
    pub fn sequence_with(&self, pipeline: &crate::Pipeline) -> Result<SequenceCache, CacheError> {
        let methods = pipeline.methods(&self.shape)?;
        Ok(SequenceCache::new(self, self.returned.clone(), methods, Some(pipeline.to_string())))
    }

    /// A new, empty sequence whose cache `methods` rewrite, those of a pipeline or others.
    pub fn sequence_of(&self, methods: Vec<Box<dyn Method>>) -> SequenceCache {
        SequenceCache::new(self, self.returned.clone(), methods, None)
    }

    /// Bytes of RAM that blocks in use take.
    pub fn used_bytes(&self) -> usize {
        let pools: usize = self.pools.iter().map(|pool| pool.used_bytes()).sum();
        let mut left = 0;
        self.for_each_left_behind(|block| left += self.ram_and_file_bytes(block).0);
        pools + self.spilled.ram_bytes() - left
    }

    /// Blocks in use: handles that a sequence holds.
    pub fn used_blocks(&mut self) -> usize {
        self.take_back();
        self.table.len() - self.free.len()
    }

    /// Bytes of files that blocks in use take, those that are in RAM as well included.
    pub fn file_bytes(&self) -> usize {
        let mut left = 0;
        self.for_each_left_behind(|block| left += self.ram_and_file_bytes(block).1);
        self.spilled.file_bytes() - left
    }

    /// Looks at the blocks of the return list that are free, because every holder has left.
    pub(crate) fn for_each_left_behind(&self, look: impl FnMut(Block)) {
        let mut leaving: Vec<Block> = self.returned.lock().clone();
        leaving.sort_unstable_by_key(|block| block.0);
        leaving
            .chunk_by(|a, b| a == b)
            .filter(|holders| self.entry(holders[0]).holders as usize == holders.len())
            .map(|holders| holders[0])
            .for_each(look);
    }

    /// The blocks that somebody holds, or held until a moment ago.
    pub(crate) fn blocks_in_use(&self) -> impl Iterator<Item = Block> + '_ {
        (0..).map(Block).zip(&self.table).filter_map(|(block, entry)| entry.as_ref().map(|_| block))
    }

    /// Takes back the blocks that dropped sequences left, so that counting is quick again. It happens by itself when the next block
    /// is taken.
    pub fn reclaim(&mut self) {
        self.take_back();
    }

    /// Gives the pages of free blocks back to the system, so that the process shrinks with the cache, and so do files.
    pub fn trim(&mut self) {
        self.take_back();
        self.pools.iter_mut().for_each(BlockPool::trim);
        self.spilled.trim();
    }

    pub(crate) fn layer(&self, layer: usize) -> LayerShape {
        self.shape.layers[layer]
    }

    /// What moves the keys of a layer to other positions; `None` if they are not rotated.
    pub(crate) fn turns(&mut self, layer: usize) -> Option<Arc<Turns>> {
        let rotary = self.shape.rotary[layer].as_ref()?;
        if let Some(turns) = self.turns.iter().find(|turns| turns.rotary() == rotary) {
            return Some(Arc::clone(turns));
        }
        let turns = Arc::new(Turns::new(Arc::clone(rotary)));
        self.turns.push(Arc::clone(&turns));
        Some(turns)
    }

    /// Where a layer's bf16 rows go.
    pub(crate) fn class_of(&self, layer: usize, plane: PlaneKind) -> SizeClass {
        self.classes[layer][plane as usize]
    }

    /// Where blocks of `bytes` go.
    ///
    /// # Errors
    /// [`KvStoreError::Reserve`] if there is no pool of that size yet, and no address space for one.
    pub(crate) fn class_for(&mut self, bytes: usize) -> Result<SizeClass, KvStoreError> {
        let bytes = bytes.next_multiple_of(64);
        let found = self.pools.iter().position(|pool| pool.block_bytes() == bytes);
        let class = match found {
            Some(class) => class,
            None => {
                self.pools.push(reserve(bytes, self.most_planes)?);
                self.pools.len() - 1
            }
        };
        Ok(SizeClass(class as u16))
    }

    /// Takes a block of zeros, with one holder, for bytes in `encoding`.
    pub(crate) fn take(&mut self, class: SizeClass, encoding: Encoding) -> Result<Block, PoolExhausted> {
        self.take_back();
        let pool = &mut self.pools[class.0 as usize];
        let place = pool.take()?;
        pool.block_mut(place).fill(0);
        self.tally.of(encoding).ram_bytes += pool.block_bytes();
        let entry = Some(Entry { class, encoding, holders: 1, place: Place::Pool(place) });
        if let Some(block) = self.free.pop() {
            self.table[block.0 as usize] = entry;
            return Ok(block);
        }
        self.table.push(entry);
        Ok(Block(self.table.len() as u32 - 1))
    }

    /// One more holder.
    pub(crate) fn share(&mut self, block: Block) -> Block {
        self.entry_mut(block).holders += 1;
        block
    }

    /// One holder less; the last one's leaving frees the block.
    pub(crate) fn release(&mut self, block: Block) {
        let entry = self.entry_mut(block);
        entry.holders -= 1;
        if entry.holders == 0 {
            let Entry { class, encoding, place, .. } = *entry;
            let (ram_bytes, file_bytes) = self.ram_and_file_bytes(block);
            let sum = self.tally.of(encoding);
            sum.ram_bytes -= ram_bytes;
            sum.file_bytes -= file_bytes;
            let pool = &mut self.pools[class.0 as usize];
            self.spilled.release(block, place, pool.block_bytes());
            if let Place::Pool(id) = place {
                pool.give_back(id);
            }
            self.table[block.0 as usize] = None;
            self.free.push(block);
        }
    }

    /// `block` itself if nobody else holds it, otherwise a copy in its place; in RAM and ready to be written.
    ///
    /// # Errors
    /// [`CacheError::Full`] if there is no room, [`CacheError::Spill`] if it lies in a file and cannot be read.
    pub(crate) fn owned(&mut self, block: Block) -> Result<Block, CacheError> {
        let Entry { class, encoding, holders, .. } = *self.entry(block);
        if holders == 1 {
            self.settle(block)?;
            return Ok(block);
        }
        self.bring(block)?;
        let copy = self.take(class, encoding)?;
        let pool = &mut self.pools[class.0 as usize];
        match (
            self.table[block.0 as usize].map(|entry| entry.place),
            self.table[copy.0 as usize].map(|entry| entry.place),
        ) {
            (Some(Place::Pool(from)), Some(Place::Pool(to))) => pool.copy(from, to),
            (Some(Place::Loose(from)), Some(Place::Pool(to))) => {
                pool.block_mut(to).copy_from_slice(self.spilled.loose(from))
            }
            _ => unreachable!("the block was brought, the copy is new"),
        }
        self.release(block);
        Ok(copy)
    }

    /// How many hold a block; 0 if it is not in use.
    pub(crate) fn holders_if_used(&self, block: Block) -> usize {
        self.table.get(block.index()).copied().flatten().map_or(0, |entry| entry.holders as usize)
    }

    /// How many hold a block.
    pub(crate) fn holders(&self, block: Block) -> usize {
        self.entry(block).holders as usize
    }

    /// Bytes of a block in RAM, in equal parts for all who hold it.
    pub(crate) fn share_bytes(&self, block: Block) -> usize {
        self.block_bytes(block) / self.holders(block)
    }

    /// The pool that a block lies in.
    pub(crate) fn class(&self, block: Block) -> SizeClass {
        self.entry(block).class
    }

    pub(crate) fn block_bytes(&self, block: Block) -> usize {
        self.pools[self.entry(block).class.0 as usize].block_bytes()
    }

    /// The bytes of a block that is in RAM.
    pub(crate) fn bytes(&self, block: Block) -> &[u8] {
        let Entry { class, place, .. } = *self.entry(block);
        match place {
            Place::Pool(id) => self.pools[class.0 as usize].block(id),
            Place::Loose(index) => self.spilled.loose(index),
            Place::Away => panic!("blocks are brought before they are read"),
        }
    }

    /// The bytes of a block that is new or [`owned`](Self::owned).
    pub(crate) fn bytes_mut(&mut self, block: Block) -> &mut [u8] {
        let Entry { class, place, .. } = *self.entry(block);
        let Place::Pool(id) = place else { panic!("blocks are owned before they are written") };
        self.pools[class.0 as usize].block_mut(id)
    }

    /// The bf16 rows of a plane.
    pub(crate) fn rows(&self, block: Block, len: usize) -> &[u16] {
        &bytemuck::cast_slice(self.bytes(block))[..len]
    }

    pub(crate) fn rows_mut(&mut self, block: Block, len: usize) -> &mut [u16] {
        &mut bytemuck::cast_slice_mut(self.bytes_mut(block))[..len]
    }

    /// Lets several threads write, each to its own blocks.
    pub(crate) fn writer(&mut self) -> StoreWriter<'_> {
        StoreWriter { table: &self.table, pools: BlockWriter::new(&mut self.pools) }
    }

    /// Takes back what dropped sequences left.
    pub(crate) fn take_back(&mut self) {
        let returned = self.returned.clone();
        for block in returned.lock().drain(..) {
            self.release(block);
        }
    }

    pub(crate) fn entry(&self, block: Block) -> &Entry {
        self.table[block.0 as usize].as_ref().expect("a holder's block is in the table")
    }

    pub(crate) fn entry_mut(&mut self, block: Block) -> &mut Entry {
        self.table[block.0 as usize].as_mut().expect("a holder's block is in the table")
    }
}

/// Write access to the blocks of a store, shared by threads.
pub(crate) struct StoreWriter<'a> {
    table: &'a [Option<Entry>],
    pools: BlockWriter<'a>,
}

impl StoreWriter<'_> {
    /// Runs `write` on the first `len` numbers of a block.
    pub(crate) fn with_rows<R>(&self, block: Block, len: usize, write: impl FnOnce(&mut [u16]) -> R) -> R {
        let entry = self.table[block.0 as usize].as_ref().expect("a holder's block is in the table");
        let Place::Pool(id) = entry.place else { panic!("blocks are owned before they are written") };
        self.pools.with_block_of(entry.class.0 as usize, id, |bytes| {
            write(&mut bytemuck::cast_slice_mut(bytes)[..len])
        })
    }
}

fn reserve(bytes: usize, blocks: usize) -> Result<BlockPool, KvStoreError> {
    let all = bytes.saturating_mul(blocks);
    BlockPool::reserve(bytes, blocks, Owner::KvCache)
        .map_err(|source| KvStoreError::Reserve { bytes: all, source })
}
