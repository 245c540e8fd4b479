//! Blocks outside the pools: in a file, or read back from one.
//!
//! A block whose bytes left RAM keeps its handle; a [`Slot`] says where in a file they lie. Read back, it lies in a block of
//! memory of its own, as a copy of its slot: taking it out again writes nothing. Whoever wants to write gets it back into its
//! pool first ([`KvStore::owned`]), and the slot is given up. All holders of a block share its place.

use std::collections::{BTreeMap, HashMap};

use kvik_memory::{HeapBlock, Owner, ReadAhead, Slot, SlotRead, SpillError, SpillFile};

use crate::store::{Block, CacheError, KvStore, Place};

/// Blocks that are read ahead together, and handed over together.
const BATCH: usize = 64;

/// Where blocks lie that are not in their pools.
#[derive(Default)]
pub(crate) struct Spilled {
    /// By the blocks' handles; as long as the highest handle that ever left its pool.
    homes: Vec<Home>,
    /// Blocks that were read back, by the index in [`Place::Loose`].
    loose: Vec<Option<HeapBlock>>,
    free_loose: Vec<u32>,
    /// Blocks that only a file holds.
    away: usize,
    /// What is being read ahead.
    batches: HashMap<u64, Batch>,
    next_batch: u64,
    ahead: Option<ReadAhead>,
    /// Bytes of `loose`, and of blocks that are being read.
    ram_bytes: usize,
    file_bytes: usize,
    /// Blocks of memory to read into, by their length.
    spare: BTreeMap<usize, Vec<HeapBlock>>,
}

/// What a block has outside its pool.
#[derive(Default)]
struct Home {
    /// The copy in a file, whether or not RAM has it too.
    slot: Option<Slot>,
    /// The batch that it is being read with.
    batch: Option<u64>,
}

/// Blocks that are being read.
struct Batch {
    blocks: Vec<Block>,
    /// How many of them are still wanted.
    wanted: usize,
}

impl Spilled {
    pub(crate) fn ram_bytes(&self) -> usize {
        self.ram_bytes
    }

    pub(crate) fn file_bytes(&self) -> usize {
        self.file_bytes
    }

    /// Bytes of files that hold `block`.
    pub(crate) fn file_bytes_of(&self, block: Block) -> usize {
        self.slot(block).map_or(0, |slot| slot.file_bytes() as usize)
    }

    pub(crate) fn loose(&self, index: u32) -> &[u8] {
        self.loose[index as usize].as_ref().expect("a place that is in use holds a block")
    }

    fn slot(&self, block: Block) -> Option<&Slot> {
        self.homes.get(block.index())?.slot.as_ref()
    }

    /// The slot of a block that is in a file only.
    fn slot_away(&self, block: Block) -> &Slot {
        self.slot(block).expect("a block that is not in RAM has a slot")
    }

    fn is_being_read(&self, block: Block) -> bool {
        self.homes.get(block.index()).is_some_and(|home| home.batch.is_some())
    }

    fn set_slot(&mut self, block: Block, slot: Slot) {
        if self.homes.len() <= block.index() {
            self.homes.resize_with(block.index() + 1, Home::default);
        }
        self.file_bytes += slot.file_bytes() as usize;
        self.homes[block.index()].slot = Some(slot);
    }

    /// Gives up what a file holds of `block`.
    fn forget_slot(&mut self, block: Block) {
        if let Some(slot) = self.homes.get_mut(block.index()).and_then(|home| home.slot.take()) {
            self.file_bytes -= slot.file_bytes() as usize;
        }
    }

    fn space(&mut self, bytes: usize) -> HeapBlock {
        let spare = self.spare.get_mut(&bytes).and_then(Vec::pop);
        spare.unwrap_or_else(|| HeapBlock::zeroed(bytes, Owner::KvCache))
    }

    fn keep_space(&mut self, space: HeapBlock) {
        self.spare.entry(space.len()).or_default().push(space);
    }

    /// Frees the block of memory at a [`Place::Loose`].
    fn free_loose(&mut self, index: u32) {
        if let Some(space) = self.loose[index as usize].take() {
            self.ram_bytes -= space.len();
            self.free_loose.push(index);
            self.keep_space(space);
        }
    }

    fn put_loose(&mut self, block: HeapBlock) -> Place {
        let index = self.free_loose.pop().unwrap_or_else(|| {
            self.loose.push(None);
            self.loose.len() as u32 - 1
        });
        self.loose[index as usize] = Some(block);
        Place::Loose(index)
    }

    /// Says that a block, of `bytes`, need not be read any more.
    fn forget_read(&mut self, block: Block, bytes: usize) {
        let Some(id) = self.homes.get_mut(block.index()).and_then(|home| home.batch.take()) else { return };
        self.ram_bytes -= bytes;
        let batch = self.batches.get_mut(&id).expect("a block is read with a batch");
        batch.wanted -= 1;
        if batch.wanted == 0 {
            self.batches.remove(&id);
            self.ahead.iter().for_each(|ahead| ahead.cancel(id));
        }
    }

    /// Frees all that a block at `place`, of `bytes`, has outside its pool.
    pub(crate) fn release(&mut self, block: Block, place: Place, bytes: usize) {
        match place {
            Place::Pool(_) => {}
            Place::Loose(index) => self.free_loose(index),
            Place::Away => {
                self.forget_read(block, bytes);
                self.away -= 1;
            }
        }
        self.forget_slot(block);
    }

    /// Gives memory back that nothing lies in, and the space of free slots.
    pub(crate) fn trim(&mut self) {
        self.spare.clear();
        let mut trimmed: Vec<&SpillFile> = Vec::new();
        for slot in self.homes.iter().filter_map(|home| home.slot.as_ref()) {
            if !trimmed.iter().any(|file| file.is(slot.file())) {
                slot.file().trim();
                trimmed.push(slot.file());
            }
        }
    }
}

impl KvStore {
    /// True if a file holds blocks that RAM does not.
    pub(crate) fn has_away(&self) -> bool {
        self.spilled.away > 0
    }

    pub(crate) fn is_in_ram(&self, block: Block) -> bool {
        !matches!(self.entry(block).place, Place::Away)
    }

    /// True if RAM is taken for a block: it is there, or being read.
    pub(crate) fn takes_ram(&self, block: Block) -> bool {
        self.is_in_ram(block) || self.spilled.is_being_read(block)
    }

    /// Takes a block out of RAM; `file` gets it, unless a file holds it already.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if it cannot be written; it then stays in RAM.
    pub(crate) fn offload(&mut self, block: Block, file: &SpillFile) -> Result<(), CacheError> {
        let entry = *self.entry(block);
        if let Place::Away = entry.place {
            return Ok(());
        }
        if self.spilled.slot(block).is_none() {
            let slot = file.write(self.bytes(block))?;
            self.tally.of(entry.encoding).file_bytes += slot.file_bytes() as usize;
            self.spilled.set_slot(block, slot);
        }
        let bytes = self.block_bytes(block);
        self.tally.of(entry.encoding).ram_bytes -= bytes;
        match entry.place {
            Place::Pool(id) => self.pools[entry.class.0 as usize].give_back(id),
            Place::Loose(index) => self.spilled.free_loose(index),
            Place::Away => {}
        }
        self.spilled.away += 1;
        self.entry_mut(block).place = Place::Away;
        Ok(())
    }

    /// Has those of `blocks` that are not in RAM read, without waiting for them.
    pub(crate) fn prefetch(&mut self, blocks: impl Iterator<Item = Block>) {
        let mut missing: Vec<Block> = Vec::new();
        for block in blocks {
            if !self.takes_ram(block) {
                // Marked at once, for it may come twice.
                self.spilled.homes[block.index()].batch =
                    Some(self.spilled.next_batch + (missing.len() / BATCH) as u64);
                missing.push(block);
            }
        }
        if missing.is_empty() {
            return;
        }
        let mut wishes = Vec::with_capacity(missing.len().div_ceil(BATCH));
        for blocks in missing.chunks(BATCH) {
            let reads: Vec<SlotRead> = blocks.iter().map(|&block| self.read_of(block)).collect();
            let batch = Batch { wanted: blocks.len(), blocks: blocks.to_vec() };
            self.spilled.batches.insert(self.spilled.next_batch, batch);
            wishes.push((self.spilled.next_batch, reads));
            self.spilled.next_batch += 1;
        }
        self.spilled.ahead.get_or_insert_with(ReadAhead::start).wish(wishes);
    }

    fn read_of(&mut self, block: Block) -> SlotRead {
        let bytes = self.block_bytes(block);
        let space = self.spilled.space(bytes);
        self.spilled.ram_bytes += bytes;
        let encoding = self.entry(block).encoding;
        self.tally.of(encoding).ram_bytes += bytes;
        self.spilled.slot_away(block).to_read(space)
    }

    /// Brings blocks into RAM, those that are not there.
    ///
    /// # Errors
    /// As for [`Self::bring`].
    pub(crate) fn bring_all(
        &mut self,
        blocks: impl Iterator<Item = Block> + Clone,
    ) -> Result<(), CacheError> {
        self.prefetch(blocks.clone());
        blocks.into_iter().try_for_each(|block| self.bring(block))
    }

    /// Brings a block into RAM, if it is not there.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if it cannot be read, or has changed.
    pub(crate) fn bring(&mut self, block: Block) -> Result<(), CacheError> {
        if self.is_in_ram(block) {
            return Ok(());
        }
        if let Some(batch) = self.spilled.homes[block.index()].batch {
            return self.receive(batch, block);
        }
        let bytes = self.block_bytes(block);
        let mut space = self.spilled.space(bytes);
        self.spilled.slot_away(block).read(&mut space)?;
        self.spilled.ram_bytes += bytes;
        let encoding = self.entry(block).encoding;
        self.tally.of(encoding).ram_bytes += bytes;
        self.arrive(block, space);
        Ok(())
    }

    /// Takes over the blocks of a batch, of which `awaited` is one. What is wrong with the others is found when they are brought.
    fn receive(&mut self, id: u64, awaited: Block) -> Result<(), CacheError> {
        let (Some(batch), Some(ahead)) = (self.spilled.batches.remove(&id), &self.spilled.ahead) else {
            unreachable!("a block is read with a batch");
        };
        let mut result = Ok(());
        for (block, read) in batch.blocks.into_iter().zip(ahead.take(id)) {
            // A block that was given up meanwhile may have been followed by another of the same name.
            let wanted = self.spilled.homes[block.index()].batch == Some(id);
            match read {
                Ok(space) if wanted => {
                    self.spilled.homes[block.index()].batch = None;
                    self.arrive(block, space);
                }
                Ok(space) => self.spilled.keep_space(space),
                Err(error) if wanted => {
                    self.spilled.homes[block.index()].batch = None;
                    let bytes = self.block_bytes(block);
                    self.spilled.ram_bytes -= bytes;
                    let encoding = self.entry(block).encoding;
                    self.tally.of(encoding).ram_bytes -= bytes;
                    if block == awaited {
                        result = Err(error.into());
                    }
                }
                Err(_) => {}
            }
        }
        result
    }

    /// Says where the bytes of a block are that was read.
    fn arrive(&mut self, block: Block, space: HeapBlock) {
        self.spilled.away -= 1;
        let place = self.spilled.put_loose(space);
        self.entry_mut(block).place = place;
    }

    /// Brings a block, which has one holder, into its pool, to be written: no file holds it any more.
    ///
    /// # Errors
    /// [`CacheError::Full`] if the pool has no room, and as for [`Self::bring`].
    pub(crate) fn settle(&mut self, block: Block) -> Result<(), CacheError> {
        let entry = *self.entry(block);
        if !matches!(entry.place, Place::Pool(_)) {
            self.bring(block)?;
            let pool = &mut self.pools[entry.class.0 as usize];
            let id = pool.take()?;
            if let Place::Loose(index) = self.entry(block).place {
                self.pools[entry.class.0 as usize].block_mut(id).copy_from_slice(self.spilled.loose(index));
                self.spilled.free_loose(index);
            }
            self.entry_mut(block).place = Place::Pool(id);
        }
        self.tally.of(entry.encoding).file_bytes -= self.spilled.file_bytes_of(block);
        self.spilled.forget_slot(block);
        Ok(())
    }
}

/// What gives the bytes of blocks.
pub(crate) trait ReadBlocks: Sync {
    /// The store that they belong to.
    fn store(&self) -> &KvStore;

    /// The bytes of a block.
    fn bytes(&self, block: Block) -> &[u8];

    /// The bf16 rows of a plane.
    fn rows(&self, block: Block, len: usize) -> &[u16] {
        &bytemuck::cast_slice(self.bytes(block))[..len]
    }
}

impl ReadBlocks for KvStore {
    fn store(&self) -> &KvStore {
        self
    }

    fn bytes(&self, block: Block) -> &[u8] {
        self.bytes(block)
    }
}

/// A look at blocks wherever they lie: those that are not in RAM are read for as long as the look takes. What was not asked for
/// and is not in RAM reads as zeros.
pub(crate) struct Glance<'a> {
    store: &'a KvStore,
    read: HashMap<Block, HeapBlock>,
    zeros: HeapBlock,
}

impl<'a> Glance<'a> {
    /// A look at `blocks`, and what went wrong: what cannot be read is zeros then.
    pub(crate) fn at(store: &'a KvStore, blocks: impl Iterator<Item = Block>) -> (Self, Option<CacheError>) {
        let mut longest = 0;
        let (mut read, mut failure) = (HashMap::new(), None);
        if store.has_away() {
            longest = store.pools.iter().map(|pool| pool.block_bytes()).max().unwrap_or(0);
            for block in blocks.filter(|&block| !store.is_in_ram(block)) {
                let mut space = HeapBlock::zeroed(store.block_bytes(block), Owner::KvCache);
                let result: Result<(), SpillError> = store.spilled.slot_away(block).read(&mut space);
                if let Err(error) = result {
                    space.fill(0);
                    failure.get_or_insert(CacheError::Spill(error));
                }
                read.insert(block, space);
            }
        }
        (Self { store, read, zeros: HeapBlock::zeroed(longest, Owner::KvCache) }, failure)
    }
}

impl ReadBlocks for Glance<'_> {
    fn store(&self) -> &KvStore {
        self.store
    }

    fn bytes(&self, block: Block) -> &[u8] {
        match self.store.is_in_ram(block) {
            true => self.store.bytes(block),
            false => self.read.get(&block).unwrap_or(&self.zeros),
        }
    }
}
