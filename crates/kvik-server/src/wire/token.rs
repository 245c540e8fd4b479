//! `/tokenize` and `/detokenize`: extensions.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::ChatMessage;

/// A text or a conversation to be cut into tokens.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The text.
    #[serde(alias = "prompt")]
    pub content: Option<String>,
    /// Or the conversation, as a chat writes it out.
    pub messages: Option<Vec<ChatMessage>>,
    /// Put the tokens around the text that the model's file asks for.
    #[serde(alias = "add_special_tokens")]
    pub add_special: Option<bool>,
    /// Also tell what each token stands for.
    pub with_pieces: Option<bool>,
}

/// The tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// Their ids.
    pub tokens: Vec<u32>,
    /// How many there are.
    pub count: usize,
    /// What each stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Vec<String>>,
    /// Tokens of the longest sequence.
    pub max_model_len: usize,
}

/// Tokens to be written out.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Write control tokens out.
    pub keep_special: Option<bool>,
}

/// The text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub content: String,
    /// The same, by another name.
    pub prompt: String,
}
