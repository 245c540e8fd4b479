//! A block of memory of its own, for bytes that come and go one at a time: what was read from a file.

use std::ops::{Deref, DerefMut};

use crate::counters::{self, Owner};

/// Bytes with the alignment of [`BlockPool`](crate::BlockPool)'s blocks, from the process's heap, charged to an [`Owner`] until
/// dropped.
pub struct HeapBlock {
    lines: Box<[Line]>,
    owner: Owner,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

impl HeapBlock {
    /// `bytes` (rounded up to a multiple of 64) zeros for `owner`.
    pub fn zeroed(bytes: usize, owner: Owner) -> Self {
        let lines = vec![Line([0; LINE_BYTES]); bytes.div_ceil(LINE_BYTES)].into_boxed_slice();
        counters::charge(owner, lines.len() * LINE_BYTES);
        Self { lines, owner }
    }
}

impl Deref for HeapBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes without padding, and lines of a slice follow each other without gaps.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE_BYTES) }
    }
}

impl DerefMut for HeapBlock {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, `&mut self` makes the access exclusive, and any bytes are a valid line.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE_BYTES)
        }
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        counters::release(self.owner, self.len());
    }
}
