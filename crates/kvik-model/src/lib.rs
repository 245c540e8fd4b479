//! Model files, tokenizers, chat templates and architectures.
//!
//! - [`Checkpoint`] opens a model's files and shows them in one way, whichever format they come in;
//! - [`architectures`] are the networks, one file each, made of [`layers`];
//! - [`Model`] loads one and runs it: tokens in, logits out, over the caches of `kvik-kv`.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod architectures;
pub mod chat_template;
pub mod checkpoint;
pub mod gguf;
pub mod layers;
pub mod metadata;
mod model;
mod quote;
pub mod safetensors;
pub mod settings;
pub mod tensor;
pub mod tokenizer;
pub mod weights;

pub use chat_template::{ChatTemplate, ChatTemplateError, FunctionCall, Message, ToolCall};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use metadata::{Metadata, MetadataError};
pub use model::{ForwardError, Model, ModelConfig, ModelError, Outputs, PrepareError, find_architecture};
pub use tensor::Tensor;
pub use tokenizer::Tokenizer;
