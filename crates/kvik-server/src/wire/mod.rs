//! The shapes of requests and answers on the wire.
//!
//! They are OpenAI's, written down here so that fields that this server does not know are read over and fields that
//! it adds have a place. What several routes share stands in [`generation`]; a body is read once for its own fields
//! and once for those, so that an error names the field it is about.

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod generation;
pub mod response;
pub mod token;

use serde::Serialize;
use utoipa::ToSchema;

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub completion_tokens: usize,
    /// Both together.
    pub total_tokens: usize,
    /// About the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What is known of a prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Tokens whose keys and values were there already.
    pub cached_tokens: usize,
}

impl Usage {
    /// From the counts.
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// The models that this server has.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelCard>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When the server started, in seconds since 1970.
    pub created: u64,
    /// Who serves it.
    pub owned_by: &'static str,
    /// Tokens of the longest sequence, prompt and answer together.
    pub context_tokens: usize,
    /// Whether it has a chat template; without one it completes text.
    pub chat: bool,
}
