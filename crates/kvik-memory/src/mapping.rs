//! Anonymous memory straight from the operating system, in huge pages where they help.

use std::{io, ptr::NonNull};

/// Mappings of at least this size ask for huge pages.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A private, zeroed mapping. Untouched pages cost address space, not memory.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory without a thread of its own; what is done with it is up to its users.
unsafe impl Send for Mapping {}
// SAFETY: as above: it gives away a pointer only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, more than none.
    ///
    /// # Errors
    /// The system's error when address space or memory is refused.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
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
        let start = NonNull::new(start.cast()).expect("mmap never returns null without MAP_FIXED");
        Ok(Self { start, len })
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `zeroed` with this length, and its users are gone.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
