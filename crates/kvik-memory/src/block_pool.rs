//! Equal blocks from one reservation, recycled through a free list.
//!
//! The pool reserves address space for its capacity once; a block costs memory from its first use on. Freed blocks
//! are handed out again first, so a steady state touches no new page and makes no system call.

use std::io;

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
        Ok(Self { memory, block_bytes, capacity, free: Vec::with_capacity(capacity), fresh: 0 })
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
}
