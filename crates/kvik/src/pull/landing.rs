//! The last metres of a download: enough space, the right sum, safely on the disk, and only then the final name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{PullError, create_parent, failed_to};

/// Fails unless the file system of `folder` has `bytes` free. Creates the folder.
pub(super) fn check_space(folder: &Path, bytes: u64) -> Result<(), PullError> {
    fs::create_dir_all(folder).map_err(failed_to("create the folder", folder))?;
    let stat = rustix::fs::statvfs(folder)
        .map_err(|error| failed_to("ask for the free space of", folder)(io::Error::from(error)))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    match bytes.checked_sub(free) {
        None | Some(0) => Ok(()),
        Some(needs) => Err(PullError::DiskFull { needs, folder: folder.to_owned() }),
    }
}

/// The error for a failed write to `path` when `missing` bytes were still to come.
pub(super) fn write_failed(path: &Path, missing: u64, error: io::Error) -> PullError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            PullError::DiskFull { needs: missing, folder: path.parent().unwrap_or(path).to_owned() }
        }
        _ => failed_to("write", path)(error),
    }
}

/// Gives the complete file `part` its final name once it matches `sha256`, and returns that name.
///
/// A file that does not match is removed. The file and the rename are on the disk when this returns.
pub(super) fn land(part: &Path, target: &Path, sha256: Option<&str>) -> Result<PathBuf, PullError> {
    if let Some(expected) = sha256 {
        let found = sha256_of(part)?;
        if !found.eq_ignore_ascii_case(expected) {
            fs::remove_file(part).map_err(failed_to("remove", part))?;
            let what = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(PullError::Checksum { what, expected: expected.to_owned(), found });
        }
    }
    create_parent(target)?;
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
    sync(part).map_err(failed_to("sync", part))?;
    fs::rename(part, target).map_err(failed_to("rename to", target))?;
    if let Some(folder) = target.parent() {
        sync(folder).map_err(failed_to("sync", folder))?;
    }
    Ok(target.to_owned())
}

/// The SHA-256 of a file, in hexadecimal.
pub(super) fn sha256_of(path: &Path) -> Result<String, PullError> {
    let mut file = File::open(path).map_err(failed_to("read", path))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(failed_to("read", path))? {
            0 => break,
            count => hasher.update(&block[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_matching_file_gets_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (part, target) = (dir.path().join("x.part"), dir.path().join("sub/x"));
        // Sum of "abc" from FIPS 180-4's example.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        fs::write(&part, "abd").unwrap();
        assert!(matches!(land(&part, &target, Some(abc)), Err(PullError::Checksum { .. })));
        assert!(!part.exists() && !target.exists());
        fs::write(&part, "abc").unwrap();
        assert_eq!(land(&part, &target, Some(abc)).unwrap(), target);
        assert!(!part.exists() && target.exists());
    }

    #[test]
    fn a_full_disk_says_how_much_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_space(dir.path(), 1).is_ok());
        let error = check_space(dir.path(), u64::MAX).unwrap_err();
        assert!(matches!(error, PullError::DiskFull { needs, .. } if needs > u64::MAX / 2));
        let sentence =
            write_failed(&dir.path().join("x"), 3 << 20, io::ErrorKind::StorageFull.into()).to_string();
        assert!(sentence.starts_with("disk full: needs 3.00 MiB more in "), "{sentence}");
        assert!(sentence.ends_with("free space or set KVIK_HOME to another folder"), "{sentence}");
    }
}
