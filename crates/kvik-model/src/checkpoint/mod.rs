//! A model on disk, opened: its settings and its tensors, whichever format they come in.
//!
//! [`Checkpoint::open`] takes a GGUF file, a safetensors file, or a folder with either, and decides by content. The
//! files are mapped, never read as a whole: opening touches the headers only, and a tensor's bytes come into memory
//! as they are looked at. Whoever has consumed them says so with [`Checkpoint::release`].

mod error;
mod open;

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use error::CheckpointError;
use kvik_memory::MappedFile;
use sha2::{Digest, Sha256};

use crate::{
    metadata::Metadata,
    tensor::{StoredType, Tensor, TensorInfo},
};

/// The format of a model's files. Displays as its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One GGUF file.
    Gguf {
        /// Version of the format, 2 or 3.
        version: u32,
    },
    /// One or more safetensors files beside a `config.json`.
    Safetensors,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf { version } => write!(f, "GGUF v{version}"),
            Self::Safetensors => write!(f, "safetensors"),
        }
    }
}

/// An opened model.
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    metadata: Metadata,
    files: Vec<Arc<MappedFile>>,
    /// In the order of the files.
    tensors: Vec<Located>,
    /// Indices of `tensors`, sorted by name.
    by_name: Vec<usize>,
}

/// A tensor and the index of its file.
struct Located {
    info: TensorInfo,
    file: usize,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens the model at `path`: a `.gguf` file, a `.safetensors` file with `config.json` beside it, or a folder
    /// that holds either. Files are told apart by content.
    ///
    /// # Errors
    /// Says which file is missing, unreadable, damaged or not a model, and what to do.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        open::open(path)
    }

    fn new(
        path: &Path,
        format: Format,
        metadata: Metadata,
        files: Vec<Arc<MappedFile>>,
        tensors: Vec<Located>,
    ) -> Self {
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|&a, &b| tensors[a].info.name.cmp(&tensors[b].info.name));
        Self { path: path.to_owned(), format, metadata, files, tensors, by_name }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a safetensors model, where `tokenizer.json` lies; `None` for GGUF, which needs no other file.
    pub fn folder(&self) -> Option<&Path> {
        match self.format {
            Format::Gguf { .. } => None,
            Format::Safetensors if self.path.is_dir() => Some(&self.path),
            Format::Safetensors => Some(parent(&self.path)),
        }
    }

    /// The format of the files.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The model's settings.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Size of the tensor files together, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// What the files say of each tensor, in their order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter().map(|located| &located.info)
    }

    /// Whether there is a tensor of this name, readable or not.
    pub fn contains(&self, name: &str) -> bool {
        self.locate(name).is_some()
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`] with the nearest name, or [`CheckpointError::ForeignType`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, CheckpointError> {
        self.find_tensor(name)?.ok_or_else(|| CheckpointError::NoTensor {
            path: self.path.clone(),
            name: name.to_owned(),
            nearest: self.nearest_name(name),
        })
    }

    /// The tensor of this name, or `None` if the model has none.
    ///
    /// # Errors
    /// [`CheckpointError::ForeignType`] if Kvik does not run its format.
    pub fn find_tensor(&self, name: &str) -> Result<Option<Tensor<'_>>, CheckpointError> {
        let Some(Located { info, file }) = self.locate(name) else { return Ok(None) };
        let bytes = info.range.clone().and_then(|range| self.files[*file].bytes().get(range));
        match (&info.ty, bytes) {
            (StoredType::Supported(ty), Some(bytes)) => {
                Ok(Some(Tensor { name: &info.name, ty: *ty, shape: &info.shape, bytes }))
            }
            _ => Err(CheckpointError::ForeignType {
                path: self.path.clone(),
                name: info.name.clone(),
                ty: info.ty.to_string(),
            }),
        }
    }

    /// Which model this is: the SHA-256 of every tensor's name, format, shape and first 64 bytes, in hexadecimal. Other weights,
    /// another quantisation or another format of the file give another one; the tokenizer does not count.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for &index in &self.by_name {
            let Located { info, file } = &self.tensors[index];
            hash.update(format!("{} {} {:?}\n", info.name, info.ty, info.shape));
            let bytes = info.range.clone().and_then(|range| self.files[*file].bytes().get(range));
            hash.update(bytes.map_or(&[][..], |bytes| &bytes[..bytes.len().min(64)]));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Gives the memory pages of the rows in `rows` back, once they were consumed. They may be read again, at the
    /// cost of mapping them again. Pages that `rows` fills only in part stay.
    pub fn release(&self, tensor: &Tensor<'_>, rows: Range<usize>) {
        let consumed = tensor.row_range(rows).as_ptr_range();
        for file in &self.files {
            let mapped = file.bytes().as_ptr_range();
            if mapped.start <= consumed.start && consumed.end <= mapped.end {
                let offset = |address: *const u8| address.addr() - mapped.start.addr();
                file.release(offset(consumed.start)..offset(consumed.end));
            }
        }
    }

    fn locate(&self, name: &str) -> Option<&Located> {
        let found =
            self.by_name.binary_search_by(|&index| self.tensors[index].info.name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[found]])
    }

    /// The name within three edits that is nearest to `wanted`.
    fn nearest_name(&self, wanted: &str) -> Option<String> {
        const EDITS: usize = 3;
        self.tensors()
            .map(|info| info.name.as_str())
            .filter(|name| name.len().abs_diff(wanted.len()) <= EDITS)
            .map(|name| (strsim::osa_distance(name, wanted), name))
            .min()
            .filter(|(edits, _)| *edits <= EDITS)
            .map(|(_, name)| name.to_owned())
    }
}

/// The folder that `file` lies in.
fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
