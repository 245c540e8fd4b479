//! Zeroed memory, aligned for SIMD and in huge pages where the system grants them.
//!
//! A large buffer is a mapping of its own. Smaller ones stand side by side in a shared mapping, because a matrix of some hundred
//! kilobytes cannot have huge pages alone, and reading it in pages of 4 KiB costs a miss of the TLB and a stop of the processor's
//! prefetcher at each of their ends.

use std::{
    io,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    counters::{self, Owner},
    mapping::{HUGE_PAGE_BYTES, Mapping},
};

/// Buffers of at least this size have a mapping of their own.
const OWN_MAPPING_BYTES: usize = 4 * HUGE_PAGE_BYTES;
/// Address space of a shared mapping. What is never handed out of it is never touched.
const SHARED_MAPPING_BYTES: usize = 64 << 20;
/// Where buffers begin: a cache line, and what every SIMD load wants.
const ALIGNMENT: usize = 64;

/// Zeroed bytes, aligned to at least 64, charged to an [`Owner`] until dropped.
///
/// The pages come straight from the operating system: untouched ones cost address space, not memory.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
    /// Keeps the bytes mapped; nothing for an empty buffer.
    _mapping: Option<Arc<Mapping>>,
}

// SAFETY: a Buffer owns its bytes alone; shared access is through `&self` and reads only.
unsafe impl Send for Buffer {}
// SAFETY: as above; every mutation goes through `&mut self`, or through `as_ptr` whose users state their own rules.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `len` zeroed bytes for `owner`.
    ///
    /// # Errors
    /// The system's error when address space or memory is refused.
    pub fn zeroed(len: usize, owner: Owner) -> io::Result<Self> {
        let (start, mapping) = match len {
            0 => (NonNull::<Aligned>::dangling().cast(), None),
            OWN_MAPPING_BYTES.. => {
                let mapping = Arc::new(Mapping::zeroed(len)?);
                (mapping.start(), Some(mapping))
            }
            _ => {
                let (start, mapping) = share(len)?;
                (start, Some(mapping))
            }
        };
        counters::charge(owner, len);
        Ok(Self { start, len, owner, _mapping: mapping })
    }

    /// Gives the whole pages inside `range` back to the system; their bytes may be zero from now on. Does nothing where the
    /// system knows no such call.
    pub fn discard(&mut self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(target_os = "linux")]
        {
            // SAFETY: a plain query.
            let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
            let address = self.start.as_ptr() as usize;
            let first = (address + range.start).next_multiple_of(page);
            let end = (address + range.end) / page * page;
            if first < end {
                // SAFETY: the pages lie inside this buffer, which is anonymous memory that nobody else has and `&mut self`
                // makes exclusive; zeroed bytes are valid bytes. A failure leaves them as they were.
                unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
            }
        }
    }

    /// First byte, for kernels that write disjoint parts from several threads.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// The shared mapping that is being handed out, and how much of it is. Bytes are handed out once, so that they are zero; the
/// mapping goes when the last buffer in it does.
static SHARED: Mutex<(Weak<Mapping>, usize)> = Mutex::new((Weak::new(), 0));

/// `len` bytes that nobody else has.
fn share(len: usize) -> io::Result<(NonNull<u8>, Arc<Mapping>)> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let (mapping, used) = match shared.0.upgrade() {
        Some(mapping) if len <= mapping.len() - shared.1 => (mapping, shared.1),
        _ => (Arc::new(Mapping::zeroed(SHARED_MAPPING_BYTES)?), 0),
    };
    *shared = (Arc::downgrade(&mapping), mapping.len().min((used + len).next_multiple_of(ALIGNMENT)));
    // SAFETY: `used + len` is inside the mapping.
    Ok((unsafe { mapping.start().add(used) }, mapping))
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
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive: no two buffers share a byte.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        counters::release(self.owner, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_counted_until_dropped() {
        for len in [3 << 20, OWN_MAPPING_BYTES + 5] {
            let before = counters::reserved_bytes(Owner::Weights);
            let mut buffer = Buffer::zeroed(len, Owner::Weights).unwrap();
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer[12345] = 7;
            assert_eq!(buffer[12345], 7);
            assert_eq!(counters::reserved_bytes(Owner::Weights) - before, len);
            drop(buffer);
            assert_eq!(counters::reserved_bytes(Owner::Weights), before);
        }
    }

    #[test]
    fn small_buffers_lie_side_by_side_and_stay_apart() {
        let mut buffers: Vec<Buffer> = [1, 64, 65, 1 << 20, 7 << 20, 7 << 20, 7 << 20, 100]
            .into_iter()
            .cycle()
            .take(40)
            .map(|len| Buffer::zeroed(len, Owner::Scratch).unwrap())
            .collect();
        for (index, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == 0));
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            buffer.fill(index as u8 + 1);
        }
        for (index, buffer) in buffers.iter().enumerate() {
            assert!(buffer.iter().all(|&byte| byte == index as u8 + 1));
        }
    }

    #[test]
    fn an_impossible_size_is_an_error_not_an_abort() {
        assert!(Buffer::zeroed(usize::MAX / 2, Owner::Weights).is_err());
        assert!(Buffer::zeroed(0, Owner::Weights).unwrap().is_empty());
    }
}
