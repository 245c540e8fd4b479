//! What is known of a loaded model and never changes: what prepares requests for it needs no more, on any thread.

use kvik_kv::KvShape;
use kvik_model::{ChatTemplate, ChatTemplateError, ModelConfig, Tokenizer, tokenizer::TokenizerError};
use std::sync::Arc;

/// What is known of a loaded model.
pub struct EngineFacts {
    /// The name of its file or folder.
    pub model_name: String,
    /// What the model is.
    pub model: ModelConfig,
    /// What cuts text into tokens; the error is what is wrong with it.
    pub tokenizer: Result<Tokenizer, Arc<TokenizerError>>,
    /// How the model wants a conversation written; `None` for a base model.
    pub chat_template: Result<Option<ChatTemplate>, ChatTemplateError>,
    /// The longest sequence, in tokens.
    pub context_tokens: usize,
    /// Tokens that the model knows; ids are below.
    pub vocabulary: usize,
    /// What the model caches.
    pub kv_shape: KvShape,
    /// Threads that it runs on.
    pub threads: usize,
}
