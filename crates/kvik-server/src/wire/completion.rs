//! `/v1/completions`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Usage;

/// Text to be continued.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// What to continue.
    pub prompt: Option<Prompt>,
    /// Report the log-probability of each token and of this many others that could have stood there (0 to 20).
    pub logprobs: Option<usize>,
    /// Begin the answer with the prompt.
    pub echo: Option<bool>,
    /// Must be `n` or left out: all answers are returned.
    pub best_of: Option<usize>,
    /// Must be left out.
    pub suffix: Option<String>,
}

/// One prompt or several, as texts or as tokens.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, a list of token ids or a list of such lists is needed"
)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Lists of tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// The answer, whole or a piece of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionResponse {
    /// The answer's id.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The answers.
    pub choices: Vec<CompletionChoice>,
    /// What it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One answer, or a piece of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// The text.
    pub text: String,
    /// Which answer: those of the first prompt come first.
    pub index: usize,
    /// The log-probabilities of its tokens.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; `null` in a piece that is not the last.
    pub finish_reason: Option<&'static str>,
}

/// The log-probabilities of an answer's tokens, list by list.
#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The texts of the tokens.
    pub tokens: Vec<String>,
    /// Their natural-log probabilities.
    pub token_logprobs: Vec<f32>,
    /// What else could have stood there.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins, in characters.
    pub text_offset: Vec<usize>,
}
