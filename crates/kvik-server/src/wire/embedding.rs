//! `/v1/embeddings`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::completion::Prompt;

/// Texts whose vectors are wanted: the mean of the model's last hidden states over a text's tokens, scaled to length 1.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct EmbeddingRequest {
    /// The texts.
    pub input: Prompt,
    /// The model's name.
    pub model: Option<String>,
    /// `float` or `base64` (little-endian f32).
    pub encoding_format: Option<String>,
    /// Must be the model's width or left out.
    pub dimensions: Option<usize>,
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingResponse {
    /// `list`.
    pub object: &'static str,
    /// One for each text.
    pub data: Vec<Embedding>,
    /// The model.
    pub model: String,
    /// What it took.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// Of which text.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector in the form that was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Floats(Vec<f32>),
    /// Their bytes, little-endian, in base64.
    Base64(String),
}

/// What it took.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Tokens of the texts.
    pub prompt_tokens: usize,
    /// The same.
    pub total_tokens: usize,
}
