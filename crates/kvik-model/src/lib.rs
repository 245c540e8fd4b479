//! Model files, tokenizers, chat templates and architectures.
//!
//! [`Checkpoint`] opens a model's files and shows them in one way, whichever format they come in.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod gguf;
pub mod metadata;
mod quote;
pub mod safetensors;
pub mod tensor;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use metadata::{Metadata, MetadataError};
pub use tensor::Tensor;
pub use tokenizer::Tokenizer;
