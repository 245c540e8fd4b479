//! Why a model cannot be opened or a tensor not be read.

use std::{fmt, io, path::PathBuf};

use crate::{gguf::GgufError, metadata::MetadataError, quote::Quoted, safetensors::SafetensorsError};

/// A model that cannot be opened, or a tensor that cannot be read from it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A GGUF file is damaged or of an unknown version.
    #[error("cannot open {path}: {problem}", path = path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: GgufError,
    },
    /// A GGUF file's settings are not what they must be.
    #[error("cannot open {path}: {problem}", path = path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        problem: MetadataError,
    },
    /// A GGUF model lies in several files.
    #[error(
        "{path} is one of {count} parts of a model; join them first with `llama-gguf-split --merge` and open the result",
        path = path.display()
    )]
    Split {
        /// The file.
        path: PathBuf,
        /// Number of parts.
        count: u32,
    },
    /// A safetensors file is damaged.
    #[error("cannot open {path}: {problem}", path = path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: SafetensorsError,
    },
    /// The file is no model in a format that Kvik reads.
    #[error("{path} is {guess}", path = path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What it seems to be instead, and what to do.
        guess: &'static str,
    },
    /// The folder holds no model.
    #[error("{path} holds no model: neither a .gguf file nor config.json with .safetensors files", path = path.display())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds several models.
    #[error("{path} holds several models; name one of its files: {}", files.join(", "), path = path.display())]
    Ambiguous {
        /// The folder.
        path: PathBuf,
        /// Some of the files, by name.
        files: Vec<String>,
    },
    /// `config.json` or the index of shards is not what it must be.
    #[error("cannot use {path}: {problem}; download the model again", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The index lists a shard that is outside the model's folder.
    #[error("{path} names the file {}, which is outside the model's folder; do not trust this model", Quoted(.file), path = path.display())]
    Outside {
        /// The index.
        path: PathBuf,
        /// The name in the index.
        file: String,
    },
    /// A shard lacks a tensor that the index promises.
    #[error("{path} lacks tensor {}, which the index promises; download the model again", Quoted(.name), path = path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The model has no such tensor.
    #[error("{path} has no tensor {name:?}{}", Suggestion(.nearest), path = path.display())]
    NoTensor {
        /// The model.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The name most like it, if one is close.
        nearest: Option<String>,
    },
    /// The tensor has a format that Kvik does not run.
    #[error(
        "tensor {} of {path} is stored as {ty}, which Kvik does not run; choose a model in another format, for example Q4_K_M or Q8_0",
        Quoted(.name), path = path.display()
    )]
    ForeignType {
        /// The model.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its format.
        ty: String,
    },
}

struct Suggestion<'a>(&'a Option<String>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "; the nearest name is {}", Quoted(name)),
            None => write!(f, "; the file is incomplete, or of an architecture that Kvik does not know"),
        }
    }
}
