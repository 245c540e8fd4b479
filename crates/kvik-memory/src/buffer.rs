//! One anonymous mapping, aligned for SIMD and advised to use huge pages.

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use crate::counters::{self, Owner};

/// Mappings of at least this size ask for huge pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Zeroed bytes, aligned to at least 64, charged to an [`Owner`] until dropped.
///
/// The pages come straight from the operating system: untouched ones cost address space, not memory.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

// SAFETY: a Buffer owns its mapping alone; shared access is through `&self` and reads only.
unsafe impl Send for Buffer {}
// SAFETY: as above; every mutation goes through `&mut self`, or through `as_ptr` whose users state their own rules.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `len` zeroed bytes for `owner`.
    ///
    /// # Errors
    /// The system's error when address space or memory is refused.
    pub fn zeroed(len: usize, owner: Owner) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { start: NonNull::<Aligned>::dangling().cast(), len, owner });
        }
        // SAFETY: a fresh private anonymous mapping aliases nothing; the result is checked before use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE_BYTES {
            // SAFETY: the range was mapped just above. The call is advice: its failure changes nothing.
            unsafe { libc::madvise(start, len, libc::MADV_HUGEPAGE) };
        }
        counters::charge(owner, len);
        let start = NonNull::new(start.cast()).expect("mmap never returns null without MAP_FIXED");
        Ok(Self { start, len, owner })
    }

    /// First byte, for kernels that write disjoint parts from several threads.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

#[repr(align(64))]
struct Aligned;

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start+len` is mapped, initialised (zeroed by the system) and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping was made in `zeroed` with this length and nothing borrows it any more.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
            counters::release(self.owner, self.len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_counted_until_dropped() {
        let before = counters::reserved_bytes(Owner::Weights);
        let mut buffer = Buffer::zeroed(3 << 20, Owner::Weights).unwrap();
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert!(buffer.iter().all(|&byte| byte == 0));
        buffer[12345] = 7;
        assert_eq!(buffer[12345], 7);
        assert_eq!(counters::reserved_bytes(Owner::Weights) - before, 3 << 20);
        drop(buffer);
        assert_eq!(counters::reserved_bytes(Owner::Weights), before);
    }

    #[test]
    fn an_impossible_size_is_an_error_not_an_abort() {
        assert!(Buffer::zeroed(usize::MAX / 2, Owner::Weights).is_err());
        assert!(Buffer::zeroed(0, Owner::Weights).unwrap().is_empty());
    }
}
