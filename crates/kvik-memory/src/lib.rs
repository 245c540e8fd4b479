//! Where Kvik's bytes lie, and who owns them.
//!
//! Weights, KV blocks and scratch space are large, long-lived and measured: a claim such as "this cache takes
//! 40 MiB" is read from the allocator, never computed from a formula. This crate therefore hands out memory in a
//! few shapes, each of which counts what it holds:
//!
//! - [`Buffer`]: anonymous, 64-byte-aligned, zeroed bytes (in huge pages where the system grants them);
//! - [`MappedFile`]: a read-only file mapping whose pages can be given back once they were consumed;
//! - [`BlockPool`]: equal blocks from one reservation, recycled through a free list;
//! - [`HeapBlock`]: one block by itself, for bytes that were read from a file;
//! - [`SpillFile`]: blocks that lie in a file, with checksums, and [`ReadAhead`], which reads them before they are needed;
//! - [`counters`]: bytes per [`Owner`], and what the operating system says of the process.

#![deny(missing_docs)]

mod block_pool;
mod buffer;
pub mod counters;
mod heap_block;
mod mapped_file;
mod mapping;
mod read_ahead;
mod spill_file;

pub use block_pool::{BlockId, BlockPool, BlockWriter, PoolExhausted};
pub use buffer::Buffer;
pub use counters::Owner;
pub use heap_block::HeapBlock;
pub use mapped_file::MappedFile;
pub use read_ahead::ReadAhead;
pub use spill_file::{Slot, SlotRead, SpillError, SpillFile};
