//! The folder of prefixes: files come and go whole.
//!
//! A file is written under another name, handed to the disk, and then renamed, so that under its own name it is complete or not
//! there, whenever the process or the machine stops. What an interrupted write leaves is removed at the next start, and so is a
//! file that bears the name of a prefix and does not begin as that prefix does; whether the rest of it is whole is found out when
//! it is read. Other files are not touched. Files are for the user alone, for they hold what people wrote, and so is a folder that
//! is made here; one that was there stays as open as it was, and shows the names.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, BufReader},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    StoreError,
    address::{Address, Chain},
    entry::{self, EntryError, Header},
};

const SUFFIX: &str = "kvprefix";
const PARTIAL: &str = "partial";
const LOCK: &str = "kvik.lock";

/// Opens a new file for writing.
pub(super) type Create = fn(&Path) -> io::Result<File>;

pub(super) struct Folder {
    path: PathBuf,
    create: Create,
    /// Held as long as the folder is in use: no other process writes to it.
    _lock: File,
}

/// A file that was found.
pub(super) struct Found {
    pub(super) chain: Chain,
    pub(super) bytes: u64,
    modified: SystemTime,
}

/// Opens a file that was not there, for the user alone.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

impl Folder {
    pub(super) fn open(path: &Path, create: Create) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), create, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn path_of(&self, file: Address) -> PathBuf {
        self.path.join(format!("{file}.{SUFFIX}"))
    }

    /// All prefixes, the one that was used least recently first. Leftovers and what is no prefix are removed; what cannot be read stays
    /// where it is. `on_trouble` hears of both.
    pub(super) fn scan(&self, on_trouble: &mut dyn FnMut(&Path, &EntryError)) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            let (stem, suffix) = (path.file_stem(), path.extension());
            let name = stem.and_then(|stem| stem.to_str()).and_then(Address::parse);
            let (Some(address), Some(suffix)) = (name, suffix) else { continue };
            if !entry.file_type()?.is_file() {
                continue;
            }
            if suffix == PARTIAL {
                fs::remove_file(&path)?;
            } else if suffix == SUFFIX {
                match found(&path, address) {
                    Ok(found) => all.push(found),
                    Err(error) => {
                        on_trouble(&path, &error);
                        if !matches!(error, EntryError::Io(_)) {
                            fs::remove_file(&path)?;
                        }
                    }
                }
            }
        }
        all.sort_by_key(|found| (found.modified, found.chain.last()));
        Ok(all)
    }

    /// Writes a prefix; after an error nothing of it is there.
    pub(super) fn write(&self, file: Address, header: &Header, image: &[u8]) -> io::Result<()> {
        let partial = self.path.join(format!("{file}.{PARTIAL}"));
        let written = (self.create)(&partial).and_then(|mut target| {
            entry::write(&mut target, header, image)?;
            target.sync_all()?;
            fs::rename(&partial, self.path_of(file))?;
            // The name is on the disk once the folder is.
            File::open(&self.path)?.sync_all()
        });
        if written.is_err() {
            // One of the two is there at most.
            let _ = fs::remove_file(&partial);
            let _ = self.remove(file);
        }
        written
    }

    /// Reads a prefix and verifies that it is the one of its name.
    pub(super) fn read(&self, file: Address) -> Result<(Header, Vec<u8>), EntryError> {
        let mut source = File::open(self.path_of(file))?;
        let bytes = source.metadata()?.len();
        let (header, image) = entry::read(&mut source, bytes)?;
        verify(&header, file)?;
        Ok((header, image))
    }

    pub(super) fn remove(&self, file: Address) -> io::Result<()> {
        fs::remove_file(self.path_of(file))
    }

    /// Says that a prefix was used now, for the order at the next start.
    pub(super) fn touch(&self, file: Address) -> io::Result<()> {
        File::options().write(true).open(self.path_of(file))?.set_modified(SystemTime::now())
    }
}

fn found(path: &Path, address: Address) -> Result<Found, EntryError> {
    let file = File::open(path)?;
    let facts = file.metadata()?;
    let (header, _) = Header::read(&mut BufReader::new(file), facts.len())?;
    let chain = verify(&header, address)?;
    Ok(Found { chain, bytes: facts.len(), modified: facts.modified()? })
}

/// The chain of a file, if it ends with the file's name.
fn verify(header: &Header, file: Address) -> Result<Chain, EntryError> {
    let chain = Chain::new(header.seed, &header.tokens);
    let whole = chain.links.len() * super::address::LINK_TOKENS == header.tokens.len();
    if whole && chain.last() == Some(file) {
        Ok(chain)
    } else {
        Err(EntryError::Damaged("its name is that of other tokens"))
    }
}
