//! A read-only file mapping whose consumed pages can be given back.
//!
//! Loading a model reads each tensor once and repacks it. With a plain mapping the file's pages would stay resident
//! beside the packed copy and double the peak; [`MappedFile::release`] drops them as soon as they were read.

use std::{fs::File, io, ops::Range, path::Path};

/// A whole file, mapped read-only.
pub struct MappedFile {
    map: Option<memmap2::Mmap>,
}

impl MappedFile {
    /// Maps the file at `path`. An empty file gives an empty slice.
    ///
    /// # Errors
    /// The system's error if the file cannot be opened or mapped, or is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before the file is opened: opening a pipe waits for someone to write to it.
        let metadata = std::fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory, not a file"));
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only. As with every mapped file, another process that truncates it while it
        // is being read can raise SIGBUS; Kvik's own downloads are renamed into place and never changed after.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map: Some(map) })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Tells the system that `range` was consumed: its whole pages leave this process's resident set.
    /// Reading them again is allowed and brings them back from the page cache.
    pub fn release(&self, range: Range<usize>) {
        const PAGE_BYTES: usize = 4096;
        let Some(map) = &self.map else { return };
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end.min(map.len()) / PAGE_BYTES * PAGE_BYTES;
        if start < end {
            // SAFETY: the mapping is read-only and backed by the file, so dropping its pages loses nothing.
            // The call is advice: its failure only leaves the pages resident.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("kvik-mapped-{}", std::process::id()));
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.bytes(), content);
        file.release(0..content.len());
        file.release(5..6);
        assert_eq!(file.bytes(), content);
        std::fs::remove_file(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_that_nobody_writes_to_is_refused_without_waiting() {
        let path = std::env::temp_dir().join(format!("kvik-pipe-{}", std::process::id()));
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = MappedFile::open(&path).err().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_directory_is_refused_and_an_empty_file_is_empty() {
        assert!(MappedFile::open(&std::env::temp_dir()).is_err());
        let path = std::env::temp_dir().join(format!("kvik-empty-{}", std::process::id()));
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().bytes().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
