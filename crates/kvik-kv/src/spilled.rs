//! Blocks outside the pools: in a file, or read back from one.
//!
//! A block whose bytes left RAM keeps its handle; a [`Slot`] says where in a file they lie. Read back, it lies in a block of
//! memory of its own, as a copy of its slot: taking it out again writes nothing. Whoever wants to write gets it back into its
//! pool first ([`KvStore::owned`]), and the slot is given up. All holders of a block share its place.

use std::collections::HashMap;

use kvik_memory::{HeapBlock, Owner, ReadAhead, Slot, SpillError, SpillFile, Wish};

use crate::store::{Block, CacheError, KvStore, Place};

/// Where blocks lie that are not in their pools.
#[derive(Default)]
pub(crate) struct Spilled {
    /// Of blocks that a file holds, whether or not RAM does too.
    slots: HashMap<Block, Slot>,
    /// Blocks that were read back, by the index in [`Place::Loose`].
    loose: Vec<Option<HeapBlock>>,
    free_loose: Vec<u32>,
    /// Blocks that only a file holds.
    away: usize,
    /// Blocks that are being read ahead, and their wishes.
    wished: HashMap<Block, u64>,
    next_wish: u64,
    ahead: Option<ReadAhead>,
    /// Bytes of `loose` and `wished`.
    ram_bytes: usize,
    file_bytes: usize,
    /// Blocks of memory to read into, by length.
    spare: HashMap<usize, Vec<HeapBlock>>,
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
        self.slots.get(&block).map_or(0, |slot| slot.file_bytes() as usize)
    }

    pub(crate) fn loose(&self, index: u32) -> &[u8] {
        self.loose[index as usize].as_ref().expect("a place that is in use holds a block")
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

    /// Gives up what a file holds of `block`.
    fn forget_slot(&mut self, block: Block) {
        if !self.slots.is_empty()
            && let Some(slot) = self.slots.remove(&block)
        {
            self.file_bytes -= slot.file_bytes() as usize;
        }
    }

    /// Gives up a block that is being read ahead; `bytes` is its length.
    fn forget_wish(&mut self, block: Block, bytes: usize) {
        if let (Some(id), Some(ahead)) = (self.wished.remove(&block), &self.ahead) {
            ahead.cancel(id);
            self.ram_bytes -= bytes;
        }
    }

    /// Frees all that a block at `place` has outside its pool.
    pub(crate) fn release(&mut self, block: Block, place: Place, bytes: usize) {
        match place {
            Place::Pool(_) => {}
            Place::Loose(index) => self.free_loose(index),
            Place::Away => {
                self.forget_wish(block, bytes);
                self.away -= 1;
            }
        }
        self.forget_slot(block);
    }

    /// Gives memory back that nothing lies in, and the space of free slots.
    pub(crate) fn trim(&mut self) {
        self.spare.clear();
        let mut trimmed: Vec<&SpillFile> = Vec::new();
        for slot in self.slots.values() {
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
        self.is_in_ram(block) || self.spilled.wished.contains_key(&block)
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
        if !self.spilled.slots.contains_key(&block) {
            let slot = file.write(self.bytes(block))?;
            self.spilled.file_bytes += slot.file_bytes() as usize;
            self.spilled.slots.insert(block, slot);
        }
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
        let mut wishes = Vec::new();
        for block in blocks {
            if self.is_in_ram(block) || self.spilled.wished.contains_key(&block) {
                continue;
            }
            let bytes = self.block_bytes(block);
            let space = self.spilled.space(bytes);
            let id = self.spilled.next_wish;
            self.spilled.next_wish += 1;
            wishes.push(Wish { id, slot: self.spilled.slots[&block].reader(), space });
            self.spilled.ram_bytes += bytes;
            self.spilled.wished.insert(block, id);
        }
        if !wishes.is_empty() {
            self.spilled.ahead.get_or_insert_with(ReadAhead::start).wish(wishes);
        }
    }

    /// Brings a block into RAM, if it is not there.
    ///
    /// # Errors
    /// [`CacheError::Spill`] if it cannot be read, or has changed.
    pub(crate) fn bring(&mut self, block: Block) -> Result<(), CacheError> {
        if self.is_in_ram(block) {
            return Ok(());
        }
        let bytes = self.block_bytes(block);
        let spilled = &mut self.spilled;
        let read = match (spilled.wished.remove(&block), &spilled.ahead) {
            (Some(id), Some(ahead)) => {
                spilled.ram_bytes -= bytes;
                ahead.take(id)?
            }
            _ => {
                let mut space = spilled.space(bytes);
                spilled.slots[&block].read(&mut space)?;
                space
            }
        };
        spilled.ram_bytes += bytes;
        spilled.away -= 1;
        let place = spilled.put_loose(read);
        self.entry_mut(block).place = place;
        Ok(())
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
                let result: Result<(), SpillError> = store.spilled.slots[&block].read(&mut space);
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
