//! Equal blocks from one reservation, recycled through a free list.
//!
//! The pool reserves address space for its capacity once; a block costs memory from its first use on. Freed blocks
//! are handed out again first, so a steady state touches no new page and makes no system call.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::*},
};

use crate::{Buffer, Owner};

/// Index of a block in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(u32);

/// Every block of the pool is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} blocks of {block_bytes} bytes are in use")]
pub struct PoolExhausted {
    /// Blocks that the pool has.
    pub capacity: usize,
    /// Size of each in bytes.
    pub block_bytes: usize,
}

/// A reservation cut into equal blocks.
pub struct BlockPool {
    memory: Buffer,
    block_bytes: usize,
    capacity: usize,
    free: Vec<BlockId>,
    fresh: usize,
    /// Per block: a [`BlockWriter`] holds it right now.
    held: Box<[AtomicBool]>,
}

impl BlockPool {
    /// Reserves `capacity` blocks of `block_bytes` (rounded up to a multiple of 64) each, charged to `owner`.
    ///
    /// # Errors
    /// The system's error when it refuses the address space.
    pub fn reserve(block_bytes: usize, capacity: usize, owner: Owner) -> io::Result<Self> {
        let block_bytes = block_bytes.next_multiple_of(64);
        let bytes = block_bytes.checked_mul(capacity).filter(|_| capacity <= u32::MAX as usize);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let memory = Buffer::zeroed(bytes, owner)?;
        let held = (0..capacity).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { memory, block_bytes, capacity, free: Vec::with_capacity(capacity), fresh: 0, held })
    }

    /// Takes a block. Its content is unspecified: zeros, or what its last user left.
    ///
    /// # Errors
    /// [`PoolExhausted`] when all blocks are in use.
    pub fn take(&mut self) -> Result<BlockId, PoolExhausted> {
        if let Some(block) = self.free.pop() {
            return Ok(block);
        }
        if self.fresh == self.capacity {
            return Err(PoolExhausted { capacity: self.capacity, block_bytes: self.block_bytes });
        }
        let block = BlockId(self.fresh as u32);
        self.fresh += 1;
        Ok(block)
    }

    /// Gives a block back. The caller must not use `block` any more.
    pub fn give_back(&mut self, block: BlockId) {
        debug_assert!(!self.free.contains(&block), "block given back twice");
        self.free.push(block);
    }

    /// The bytes of a block.
    pub fn block(&self, block: BlockId) -> &[u8] {
        let start = block.0 as usize * self.block_bytes;
        &self.memory[start..start + self.block_bytes]
    }

    /// The bytes of a block, to write.
    pub fn block_mut(&mut self, block: BlockId) -> &mut [u8] {
        let start = block.0 as usize * self.block_bytes;
        &mut self.memory[start..start + self.block_bytes]
    }

    /// Copies the bytes of one block to another.
    pub fn copy(&mut self, from: BlockId, to: BlockId) {
        let from = from.0 as usize * self.block_bytes;
        self.memory.copy_within(from..from + self.block_bytes, to.0 as usize * self.block_bytes);
    }

    /// Gives the whole pages of free blocks back to the system. They cost memory again from their next use on.
    pub fn trim(&mut self) {
        let mut free: Vec<usize> = self.free.iter().map(|block| block.0 as usize).collect();
        free.sort_unstable();
        for run in free.chunk_by(|a, b| a + 1 == *b) {
            let start = run[0] * self.block_bytes;
            self.memory.discard(start..start + run.len() * self.block_bytes);
        }
    }

    /// Lets several threads write, each to the block that it holds.
    pub fn writer(&mut self) -> BlockWriter<'_> {
        BlockWriter { pools: std::slice::from_mut(self) }
    }

    /// Size of each block in bytes.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Blocks in use.
    pub fn used(&self) -> usize {
        self.fresh - self.free.len()
    }

    /// Bytes of the blocks in use.
    pub fn used_bytes(&self) -> usize {
        self.used() * self.block_bytes
    }

    /// Blocks that the pool can hand out in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Exclusive access to some pools, shared by threads that write to different blocks.
pub struct BlockWriter<'a> {
    pools: &'a mut [BlockPool],
}

impl<'a> BlockWriter<'a> {
    /// Access to all of `pools`.
    pub fn new(pools: &'a mut [BlockPool]) -> Self {
        Self { pools }
    }

    /// Runs `write` on the bytes of a block of the first pool.
    ///
    /// # Panics
    /// If another call holds the same block.
    pub fn with_block<R>(&self, block: BlockId, write: impl FnOnce(&mut [u8]) -> R) -> R {
        self.with_block_of(0, block, write)
    }

    /// Runs `write` on the bytes of a block of the pool at index `pool`.
    ///
    /// # Panics
    /// If another call holds the same block, or there is no such pool.
    pub fn with_block_of<R>(&self, pool: usize, block: BlockId, write: impl FnOnce(&mut [u8]) -> R) -> R {
        struct Hold<'a>(&'a AtomicBool);
        impl Drop for Hold<'_> {
            fn drop(&mut self) {
                self.0.store(false, Release);
            }
        }
        let pool = &self.pools[pool];
        let held = &pool.held[block.0 as usize];
        assert!(!held.swap(true, Acquire), "two threads write to one block");
        let _hold = Hold(held);
        let (start, len) = (block.0 as usize * pool.block_bytes, pool.block_bytes);
        // SAFETY: the range is in bounds, for `held` has one entry for each block of the reservation. The writer
        // borrows the pools exclusively, `held` keeps every other call off this block until the reference is gone, and
        // nobody makes a reference to the whole reservation meanwhile.
        write(unsafe { std::slice::from_raw_parts_mut(pool.memory.as_ptr().add(start), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_recycled_before_new_ones_are_touched() {
        let mut pool = BlockPool::reserve(100, 2, Owner::KvCache).unwrap();
        assert_eq!(pool.block_bytes(), 128);
        let a = pool.take().unwrap();
        pool.block_mut(a).fill(1);
        let b = pool.take().unwrap();
        assert_ne!(a, b);
        assert_eq!(pool.take(), Err(PoolExhausted { capacity: 2, block_bytes: 128 }));
        pool.give_back(a);
        assert_eq!(pool.used_bytes(), 128);
        assert_eq!(pool.take(), Ok(a));
        assert!(pool.block(b).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn threads_write_to_blocks_of_their_own_and_never_to_one_together() {
        let mut pool = BlockPool::reserve(64, 4, Owner::KvCache).unwrap();
        let blocks = [pool.take().unwrap(), pool.take().unwrap()];
        let writer = pool.writer();
        std::thread::scope(|scope| {
            for (i, &block) in blocks.iter().enumerate() {
                let writer = &writer;
                scope.spawn(move || writer.with_block(block, |bytes| bytes.fill(i as u8 + 1)));
            }
        });
        let nested = std::panic::AssertUnwindSafe(|| {
            writer.with_block(blocks[0], |_| writer.with_block(blocks[0], |_| ()));
        });
        assert!(std::panic::catch_unwind(nested).is_err());
        writer.with_block(blocks[0], |bytes| assert!(bytes.iter().all(|&byte| byte == 1)));
        assert!(pool.block(blocks[1]).iter().all(|&byte| byte == 2));
    }
}
