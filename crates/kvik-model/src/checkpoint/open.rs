//! Finds the files of a model and opens them.

use std::{
    collections::BTreeMap,
    path::{Component, Path},
    sync::Arc,
};

use kvik_memory::MappedFile;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Checkpoint, CheckpointError, Format, Located, parent};
use crate::{gguf, metadata::Metadata, quote::one_line, safetensors};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Parsed JSON takes many times its file's size, so files larger than any real model's are refused: a
/// configuration has some kilobytes, an index some megabytes.
const CONFIG_BYTES_LIMIT: usize = 2 << 20;
const INDEX_BYTES_LIMIT: usize = 64 << 20;

pub(super) fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let metadata = std::fs::metadata(path).map_err(|error| read_error(path, error))?;
    if metadata.is_dir() { open_folder(path) } else { open_file(path, path) }
}

/// Opens `file`, a model that was asked for as `path`.
fn open_file(path: &Path, file: &Path) -> Result<Checkpoint, CheckpointError> {
    let mapped = map(file)?;
    if mapped.bytes().starts_with(&gguf::MAGIC) {
        open_gguf(path, file, mapped)
    } else if mapped.bytes().get(8) == Some(&b'{') {
        let config = read_config(parent(file))?;
        let tensors = safetensors_header(file, &mapped)?;
        Ok(Checkpoint::new(path, Format::Safetensors, config, vec![Arc::new(mapped)], tensors))
    } else {
        Err(CheckpointError::UnknownFormat { path: file.to_owned(), guess: guess(mapped.bytes()) })
    }
}

fn open_gguf(path: &Path, file: &Path, mapped: MappedFile) -> Result<Checkpoint, CheckpointError> {
    let header = gguf::Header::parse(mapped.bytes())
        .map_err(|problem| CheckpointError::Gguf { path: file.to_owned(), problem })?;
    let mapped = Arc::new(mapped);
    let metadata = Metadata::from_gguf(mapped.clone(), header.metadata);
    let parts = metadata.find::<u32>("split.count");
    match parts.map_err(|problem| CheckpointError::Metadata { path: file.to_owned(), problem })? {
        Some(count) if count > 1 => return Err(CheckpointError::Split { path: file.to_owned(), count }),
        _ => {}
    }
    let tensors = header.tensors.into_iter().map(|info| Located { info, file: 0 }).collect();
    let format = Format::Gguf { version: header.version };
    Ok(Checkpoint::new(path, format, metadata, vec![mapped], tensors))
}

fn open_folder(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let has = |name: &str| folder.join(name).is_file();
    if has(CONFIG) && has(SINGLE) {
        return open_file(folder, &folder.join(SINGLE));
    }
    if has(CONFIG) && has(INDEX) {
        return open_shards(folder);
    }
    let mut models = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| read_error(folder, error))? {
        let name = entry.map_err(|error| read_error(folder, error))?.file_name();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if extension == Some("gguf") || (extension == Some("safetensors") && has(CONFIG)) {
            models.push(name);
        }
    }
    match models.as_slice() {
        [] => Err(CheckpointError::EmptyFolder { path: folder.to_owned() }),
        [file] => open_file(folder, &folder.join(file)),
        _ => {
            models.sort();
            let files = models.iter().take(10).map(|name| format!("{name:?}")).collect();
            Err(CheckpointError::Ambiguous { path: folder.to_owned(), files })
        }
    }
}

/// Which shard holds which tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn open_shards(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    let config = read_config(folder)?;
    let index_path = folder.join(INDEX);
    let index: ShardIndex = read_json(&index_path, INDEX_BYTES_LIMIT)?;

    let mut names_by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &index.weight_map {
        names_by_shard.entry(shard).or_default().push(tensor);
    }
    let mut files = Vec::new();
    let mut tensors = Vec::new();
    for (shard, names) in names_by_shard {
        if !is_plain_file_name(shard) {
            return Err(CheckpointError::Outside { path: index_path, file: shard.to_owned() });
        }
        let path = folder.join(shard);
        let mapped = map(&path)?;
        let mut present = safetensors_header(&path, &mapped)?;
        // The names come sorted from the index; a shard's other tensors belong to nobody.
        present.retain(|located| names.binary_search(&located.info.name.as_str()).is_ok());
        if present.len() < names.len() {
            let absent = names.iter().find(|name| present.iter().all(|located| located.info.name != **name));
            let name = absent.copied().unwrap_or_default().to_owned();
            return Err(CheckpointError::NotInShard { path, name });
        }
        tensors.extend(present.into_iter().map(|located| Located { file: files.len(), ..located }));
        files.push(Arc::new(mapped));
    }
    Ok(Checkpoint::new(folder, Format::Safetensors, config, files, tensors))
}

/// Whether `name` stays in the folder that it is joined to.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        && !name.contains(['/', '\\'])
}

fn safetensors_header(path: &Path, mapped: &MappedFile) -> Result<Vec<Located>, CheckpointError> {
    let tensors = safetensors::parse_header(mapped.bytes())
        .map_err(|problem| CheckpointError::Safetensors { path: path.to_owned(), problem })?;
    Ok(tensors.into_iter().map(|info| Located { info, file: 0 }).collect())
}

fn read_config(folder: &Path) -> Result<Metadata, CheckpointError> {
    read_json(&folder.join(CONFIG), CONFIG_BYTES_LIMIT).map(Metadata::from_config)
}

fn read_json<T: DeserializeOwned>(path: &Path, limit: usize) -> Result<T, CheckpointError> {
    let mapped = map(path)?;
    let problem = match mapped.bytes() {
        bytes if bytes.len() > limit => {
            format!("{} bytes are more than the {limit} that any model needs", bytes.len())
        }
        bytes => match serde_json::from_slice(bytes) {
            Ok(parsed) => return Ok(parsed),
            Err(error) => one_line(&error.to_string()),
        },
    };
    Err(CheckpointError::Json { path: path.to_owned(), problem })
}

fn map(path: &Path) -> Result<MappedFile, CheckpointError> {
    MappedFile::open(path).map_err(|error| read_error(path, error))
}

fn read_error(path: &Path, error: std::io::Error) -> CheckpointError {
    CheckpointError::Read { path: path.to_owned(), error }
}

/// What a file that is no model seems to be, and what to do.
fn guess(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "empty; download it again",
        [b'P', b'K', 3, 4, ..] | [0x80, 2, ..] => {
            "a PyTorch checkpoint or an archive, not GGUF or safetensors; convert it first"
        }
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "a Git LFS pointer in place of the model; fetch the model itself with `git lfs pull`"
        }
        _ if bytes.trim_ascii_start().first() == Some(&b'<') => "a web page, not a model; download it again",
        _ => "neither a GGUF nor a safetensors file; check the path",
    }
}
