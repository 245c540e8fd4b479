//! Bytes per owner, and what the operating system says of this process.
//!
//! Every [`crate::Buffer`] is charged to an [`Owner`] while it lives, so that "how much memory is KV" has an
//! answer that was counted. Resident sizes come from `/proc/self/status`, where the system has it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a piece of memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Model weights, packed for the kernels.
    Weights,
    /// Cached keys and values.
    KvCache,
    /// Space that is used and thrown away, for instance to measure the memory itself.
    Scratch,
}

const OWNERS: usize = 3;
static BYTES: [AtomicUsize; OWNERS] = [const { AtomicUsize::new(0) }; OWNERS];

pub(crate) fn charge(owner: Owner, bytes: usize) {
    BYTES[owner as usize].fetch_add(bytes, Relaxed);
}

pub(crate) fn release(owner: Owner, bytes: usize) {
    BYTES[owner as usize].fetch_sub(bytes, Relaxed);
}

/// Bytes that live buffers of `owner` have reserved in this process.
pub fn reserved_bytes(owner: Owner) -> usize {
    BYTES[owner as usize].load(Relaxed)
}

/// Peak resident size of this process in bytes, or `None` where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    status_field("VmHWM:")
}

/// Current resident size of this process in bytes, or `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    status_field("VmRSS:")
}

fn status_field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
