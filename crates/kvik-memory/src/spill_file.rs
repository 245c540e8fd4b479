//! A file for blocks that have no room in memory.
//!
//! The file has no name: it goes when its last holder does, or when the process dies. Blocks lie in slots, each as long as its
//! block; a slot that is given up is used again by the next block of that length, and [`SpillFile::trim`] gives the space of the
//! others back to the file system. A checksum (XXH3) of what was written stays in memory with the slot, so that a disk that gives
//! back something else is found out.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use xxhash_rust::xxh3::xxh3_64;

use crate::HeapBlock;

/// Slots begin at a multiple of this.
const ALIGNMENT: u64 = 64;
/// What a file system gives back: whole pieces of this many bytes.
const PAGE_BYTES: u64 = 4096;
/// Blocks that one call reads at most; the system's own limit is not lower.
const MOST_AT_ONCE: usize = 64;

/// What went wrong with a spill file.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// No file can be made there.
    #[error("cannot make a file for the cache in {folder}: {source}; name a folder that can be written to", folder = .folder.display())]
    Open {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A block cannot be written.
    #[error("cannot write {bytes} bytes of the cache to the file in {folder}: {source}; make room there, name another folder, or let the cache have more memory", folder = .folder.display())]
    Write {
        /// The file's folder.
        folder: PathBuf,
        /// Bytes of the block.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A block cannot be read back.
    #[error("cannot read {bytes} bytes of the cache back from the file in {folder}: {source}; the sequence has to be computed again, in another folder or without a file", folder = .folder.display())]
    Read {
        /// The file's folder.
        folder: PathBuf,
        /// Bytes of the block.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A block came back, but not as it was written.
    #[error("the file in {folder} has lost {bytes} bytes of the cache at byte {offset}: their checksum is not what was written; the sequence has to be computed again, and the disk wants a look", folder = .folder.display())]
    Damaged {
        /// The file's folder.
        folder: PathBuf,
        /// Bytes of the block.
        bytes: usize,
        /// Where they lie in the file.
        offset: u64,
    },
}

/// A file for blocks; clones are the same file.
#[derive(Clone)]
pub struct SpillFile(Arc<Inner>);

struct Inner {
    file: File,
    folder: PathBuf,
    slots: Mutex<Slots>,
}

/// Which parts of the file are free.
#[derive(Default)]
struct Slots {
    /// Offsets of free slots by their length.
    free: BTreeMap<u64, Vec<u64>>,
    end: u64,
    used_bytes: u64,
}

/// A block's place in a file; dropping it frees the place.
pub struct Slot {
    file: SpillFile,
    offset: u64,
    bytes: usize,
    checksum: u64,
}

/// A slot to be read, and the space for its block. A slot that is dropped meanwhile reads as damaged, or not at all.
pub struct SlotRead {
    file: SpillFile,
    offset: u64,
    checksum: u64,
    space: HeapBlock,
}

impl SpillFile {
    /// A new file in `folder`.
    ///
    /// # Errors
    /// [`SpillError::Open`].
    pub fn in_folder(folder: &Path) -> Result<Self, SpillError> {
        match tempfile::tempfile_in(folder) {
            Ok(file) => Ok(Self::from_file(file, folder)),
            Err(source) => Err(SpillError::Open { folder: folder.to_owned(), source }),
        }
    }

    /// Uses an open file, from its first byte on; `folder` is for messages.
    pub fn from_file(file: File, folder: &Path) -> Self {
        Self(Arc::new(Inner { file, folder: folder.to_owned(), slots: Mutex::default() }))
    }

    /// Writes a block.
    ///
    /// # Errors
    /// [`SpillError::Write`]; the file then holds what it held before.
    pub fn write(&self, block: &[u8]) -> Result<Slot, SpillError> {
        let bytes = block.len();
        // Made first, so that a failure frees it.
        let slot = Slot {
            file: self.clone(),
            offset: self.slots().take(length(bytes)),
            bytes,
            checksum: xxh3_64(block),
        };
        match self.0.file.write_all_at(block, slot.offset) {
            Ok(()) => Ok(slot),
            Err(source) => Err(SpillError::Write { folder: self.0.folder.clone(), bytes, source }),
        }
    }

    /// True if both are one file.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Bytes of the slots in use.
    pub fn used_bytes(&self) -> u64 {
        self.slots().used_bytes
    }

    /// Gives the space of free slots back to the file system, as far as it can take it.
    pub fn trim(&self) {
        let mut slots = self.slots();
        let free = std::mem::take(&mut slots.free);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut by_offset: Vec<(u64, u64)> =
            free.iter().flat_map(|(&len, offsets)| offsets.iter().map(move |&at| (at, at + len))).collect();
        by_offset.sort_unstable();
        for (start, end) in by_offset {
            match runs.last_mut() {
                Some(run) if run.1 == start => run.1 = end,
                _ => runs.push((start, end)),
            }
        }
        if let Some(last) = runs.pop_if(|run| run.1 == slots.end) {
            slots.end = last.0;
            // A file that cannot be cut stays long, and is written over.
            let _ = self.0.file.set_len(last.0);
        }
        runs.iter().for_each(|&run| self.punch(run));
        let end = slots.end;
        slots.free = free;
        slots.free.retain(|_, offsets| {
            offsets.retain(|&at| at < end);
            !offsets.is_empty()
        });
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), SpillError> {
        self.0.file.read_exact_at(out, offset).map_err(|source| SpillError::Read {
            folder: self.0.folder.clone(),
            bytes: out.len(),
            source,
        })
    }

    fn check(&self, offset: u64, checksum: u64, block: &[u8]) -> Result<(), SpillError> {
        if xxh3_64(block) == checksum {
            return Ok(());
        }
        Err(SpillError::Damaged { folder: self.0.folder.clone(), bytes: block.len(), offset })
    }

    /// Makes a hole of the whole pages inside a run, where the system can.
    fn punch(&self, (start, end): (u64, u64)) {
        let (first, end) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
        #[cfg(target_os = "linux")]
        if first < end {
            use rustix::fs::{FallocateFlags, fallocate};
            // A file system without holes keeps the space, and uses it again.
            let _ = fallocate(
                &self.0.file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                first,
                end - first,
            );
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (first, end);
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the file that a block takes.
fn length(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(ALIGNMENT)
}

impl Slots {
    fn take(&mut self, len: u64) -> u64 {
        self.used_bytes += len;
        if let Some(offset) = self.free.get_mut(&len).and_then(Vec::pop) {
            return offset;
        }
        self.end += len;
        self.end - len
    }
}

impl Slot {
    /// The file that it is in.
    pub fn file(&self) -> &SpillFile {
        &self.file
    }

    /// Bytes of the file that it takes.
    pub fn file_bytes(&self) -> u64 {
        length(self.bytes)
    }

    /// Reads the block into `out`, as long as what was written.
    ///
    /// # Errors
    /// [`SpillError::Read`] or [`SpillError::Damaged`].
    pub fn read(&self, out: &mut [u8]) -> Result<(), SpillError> {
        self.file.read(self.offset, out)?;
        self.file.check(self.offset, self.checksum, out)
    }

    /// What it takes to read the block elsewhere, into a `space` as long as what was written.
    pub fn to_read(&self, space: HeapBlock) -> SlotRead {
        SlotRead { file: self.file.clone(), offset: self.offset, checksum: self.checksum, space }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let len = self.file_bytes();
        let mut slots = self.file.slots();
        slots.used_bytes -= len;
        if slots.used_bytes > 0 {
            slots.free.entry(len).or_default().push(self.offset);
        } else {
            *slots = Slots::default();
            let _ = self.file.0.file.set_len(0);
        }
    }
}

impl SlotRead {
    /// Reads several slots; those that follow each other in their file in one call of the system.
    pub fn all(mut reads: Vec<Self>) -> Vec<Result<HeapBlock, SpillError>> {
        let mut results = Vec::with_capacity(reads.len());
        let follows = |a: &Self, b: &Self| a.file.is(&b.file) && a.offset + a.space.len() as u64 == b.offset;
        for run in reads.chunk_by_mut(follows) {
            for run in run.chunks_mut(MOST_AT_ONCE) {
                let at_once = Self::run(run);
                results.extend(run.iter_mut().map(|read| {
                    if !at_once {
                        read.file.read(read.offset, &mut read.space)?;
                    }
                    read.file.check(read.offset, read.checksum, &read.space)
                }));
            }
        }
        let blocks = reads.into_iter().map(|read| read.space);
        blocks.zip(results).map(|(block, result)| result.map(|()| block)).collect()
    }

    /// Reads slots that follow each other, and says whether that was possible.
    fn run(run: &mut [Self]) -> bool {
        let [first, _, ..] = run else { return false };
        let (file, offset) = (first.file.clone(), first.offset);
        let bytes: usize = run.iter().map(|read| read.space.len()).sum();
        let mut spaces: Vec<IoSliceMut<'_>> =
            run.iter_mut().map(|read| IoSliceMut::new(&mut read.space)).collect();
        rustix::io::preadv(&file.0.file, &mut spaces, offset).is_ok_and(|read| read == bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(seed: u8, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|index| seed.wrapping_mul(31).wrapping_add(index as u8)).collect()
    }

    fn check(slot: &Slot, seed: u8, bytes: usize) {
        let mut out = vec![0; bytes];
        slot.read(&mut out).unwrap();
        assert_eq!(out, block(seed, bytes));
    }

    #[test]
    fn blocks_come_back_and_slots_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = SpillFile::in_folder(folder.path()).unwrap();
        // Nothing to be found, and to be left behind by a crash.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut slots: Vec<Slot> = (0..20).map(|i| file.write(&block(i, 8192)).unwrap()).collect();
        let small = file.write(&block(99, 100)).unwrap();
        assert_eq!(file.used_bytes(), 20 * 8192 + 128);
        slots.drain(3..7);
        let again = file.write(&block(50, 8192)).unwrap();
        assert_eq!(file.slots().end, 20 * 8192 + 128);
        check(&again, 50, 8192);
        check(&small, 99, 100);
        for (slot, seed) in slots.iter().zip((0..3).chain(7..20)) {
            check(slot, seed, 8192);
        }
    }

    #[test]
    fn trimming_keeps_what_is_in_use_and_shortens_the_file() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let handle = file.try_clone().unwrap();
        let file = SpillFile::from_file(file, Path::new("here"));
        let mut slots: Vec<Slot> = (0..64).map(|i| file.write(&block(i, 8192)).unwrap()).collect();
        let last = slots.split_off(32);
        drop(last);
        slots.drain(4..20);
        file.trim();
        let metadata = handle.metadata().unwrap();
        assert_eq!(metadata.len(), 32 * 8192);
        assert!(metadata.blocks() * 512 <= 16 * 8192, "{} bytes", metadata.blocks() * 512);
        for (slot, seed) in slots.iter().zip((0..4).chain(20..32)) {
            check(slot, seed, 8192);
        }
        let more: Vec<Slot> = (100..130).map(|i| file.write(&block(i, 8192)).unwrap()).collect();
        for (slot, seed) in slots.iter().zip((0..4).chain(20..32)).chain(more.iter().zip(100..130)) {
            check(slot, seed, 8192);
        }
        drop((slots, more));
        assert_eq!((file.used_bytes(), handle.metadata().unwrap().len()), (0, 0));
    }

    #[test]
    fn several_blocks_are_read_at_once_and_each_is_checked() {
        use crate::Owner;
        let file = tempfile::tempfile().unwrap();
        let handle = file.try_clone().unwrap();
        let file = SpillFile::from_file(file, Path::new("here"));
        let mut slots: Vec<Slot> = (0..150).map(|i| file.write(&block(i, 4096)).unwrap()).collect();
        slots.swap(3, 70);
        slots.remove(20);
        handle.write_all_at(&[0xff; 2], slots[100].offset + 9).unwrap();
        let reads = slots.iter().map(|slot| slot.to_read(HeapBlock::zeroed(4096, Owner::Scratch))).collect();
        for (index, (result, slot)) in SlotRead::all(reads).into_iter().zip(&slots).enumerate() {
            match result {
                Ok(read) => assert!(index != 100 && *read == block((slot.offset / 4096) as u8, 4096)[..]),
                Err(error) => assert!(index == 100 && matches!(error, SpillError::Damaged { .. }), "{error}"),
            }
        }
        // The file ends inside a run: what is there is still read.
        handle.set_len(140 * 4096).unwrap();
        let reads = slots.iter().map(|slot| slot.to_read(HeapBlock::zeroed(4096, Owner::Scratch))).collect();
        let read = SlotRead::all(reads).iter().filter(|result| result.is_ok()).count();
        assert_eq!(read, 138);
    }

    #[test]
    fn a_flipped_bit_a_full_disk_and_a_missing_folder_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        let handle = file.try_clone().unwrap();
        let file = SpillFile::from_file(file, Path::new("here"));
        let slots = [file.write(&block(1, 8192)).unwrap(), file.write(&block(2, 8192)).unwrap()];
        let mut byte = [0];
        handle.read_exact_at(&mut byte, 8192 + 77).unwrap();
        handle.write_all_at(&[byte[0] ^ 4], 8192 + 77).unwrap();
        check(&slots[0], 1, 8192);
        let damaged = slots[1].read(&mut [0; 8192]).unwrap_err();
        assert!(matches!(damaged, SpillError::Damaged { offset: 8192, bytes: 8192, .. }), "{damaged}");
        handle.set_len(8192).unwrap();
        assert!(matches!(slots[1].read(&mut [0; 8192]), Err(SpillError::Read { .. })));

        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let full = SpillFile::from_file(full, Path::new("/dev"));
        let error = full.write(&[0; 64]).err().unwrap();
        assert!(error.to_string().contains("make room there"), "{error}");
        assert_eq!(full.used_bytes(), 0);

        let missing = SpillFile::in_folder(Path::new("/no such folder")).err().unwrap();
        assert!(missing.to_string().contains("/no such folder"), "{missing}");
    }
}
