//! `/v1/responses`, for text.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{chat::Content, generation::JsonSchema};

/// Text or a conversation to be answered.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// What the user says, or the conversation.
    pub input: ResponsesInput,
    /// What the system message says.
    pub instructions: Option<String>,
    /// Tokens of the answer at most.
    pub max_output_tokens: Option<usize>,
    /// What form the answer must have.
    pub text: Option<TextOptions>,
    /// Must be empty: functions are for `/v1/chat/completions`.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// Must be left out: answers are not kept.
    pub previous_response_id: Option<String>,
    /// Given back with the answer.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Map<String, Value>>,
}

/// What the user says, or the conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of messages with role and content is needed")]
pub enum ResponsesInput {
    /// What the user says.
    Text(String),
    /// The conversation.
    Items(Vec<ResponsesItem>),
}

/// One message of the conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponsesItem {
    /// `message` or left out.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Who speaks.
    pub role: Option<String>,
    /// What is said.
    pub content: Option<Content>,
}

/// What form the answer must have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextOptions {
    /// The form.
    pub format: Option<TextFormat>,
}

/// The form of an answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct TextFormat {
    /// `text`, `json_object`, `json_schema`, `grammar` or `regex`.
    #[serde(rename = "type")]
    pub kind: String,
    /// With `json_schema`: what it is called.
    pub name: Option<String>,
    /// With `json_schema`: the schema.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// With `grammar`: a grammar in Lark's notation.
    pub grammar: Option<String>,
    /// With `regex`: a regular expression.
    pub regex: Option<String>,
}

impl From<TextFormat> for super::generation::ResponseFormat {
    fn from(format: TextFormat) -> Self {
        let schema = JsonSchema { name: format.name, schema: format.schema, strict: Some(true) };
        Self {
            json_schema: (format.kind == "json_schema").then_some(schema),
            kind: format.kind,
            grammar: format.grammar,
            regex: format.regex,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponsesResponse {
    /// Its id.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// What went wrong.
    pub error: Option<ResponsesError>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// What the system message says.
    pub instructions: Option<String>,
    /// Tokens of the answer at most.
    pub max_output_tokens: Option<usize>,
    /// The model.
    pub model: String,
    /// The message that answers.
    pub output: Vec<OutputMessage>,
    /// Always false.
    pub parallel_tool_calls: bool,
    /// How surprising tokens may be.
    pub temperature: f32,
    /// Which tokens are drawn from.
    pub top_p: f32,
    /// Always `none`.
    pub tool_choice: &'static str,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
    /// Always false.
    pub store: bool,
    /// What came with the request.
    #[schema(value_type = Object)]
    pub metadata: serde_json::Map<String, Value>,
    /// What it took.
    pub usage: Option<ResponsesUsage>,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponsesError {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Why an answer is incomplete.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens`.
    pub reason: &'static str,
}

/// The message that answers.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OutputMessage {
    /// `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: Vec<OutputText>,
}

/// The text of a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct OutputText {
    /// `output_text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub annotations: Vec<Value>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub logprobs: Vec<Value>,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct ResponsesUsage {
    /// Tokens of the prompt.
    pub input_tokens: usize,
    /// About them.
    pub input_tokens_details: InputTokensDetails,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// About them.
    pub output_tokens_details: OutputTokensDetails,
    /// Both together.
    pub total_tokens: usize,
}

/// About a prompt's tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Tokens whose keys and values were there already.
    pub cached_tokens: usize,
}

/// About an answer's tokens.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Always 0: they are not told apart.
    pub reasoning_tokens: usize,
}
