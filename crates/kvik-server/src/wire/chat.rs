//! `/v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Usage;

/// A conversation whose next message is wanted.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Functions that the model may call.
    pub tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, or which function must be called.
    pub tool_choice: Option<ToolChoice>,
    /// At most one call, if false.
    pub parallel_tool_calls: Option<bool>,
    /// Report the log-probability of each token.
    pub logprobs: Option<bool>,
    /// And of this many others that could have stood there (0 to 20).
    pub top_logprobs: Option<usize>,
    /// What else the model's chat template can see, such as `enable_thinking`. An extension.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<serde_json::Map<String, Value>>,
}

/// One message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: Option<Content>,
    /// Who says it.
    pub name: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Which call a message of the role `tool` answers.
    pub tool_call_id: Option<String>,
}

/// A text, whole or in parts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of parts with type and text is needed")]
pub enum Content {
    /// Whole.
    Text(String),
    /// In parts.
    Parts(Vec<ContentPart>),
}

/// A part of a message.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`, `input_text`, `output_text` or `refusal`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
    /// The text of a refusal.
    pub refusal: Option<String>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    pub function: FunctionDefinition,
}

/// A function's name and parameters.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FunctionDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema of its parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
}

/// Which functions may or must be called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "none, auto, required or a function is needed")]
pub enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This one.
    Function(NamedTool),
}

/// A function by name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedTool {
    /// The function.
    pub function: FunctionName,
}

/// A function's name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// What its answer refers to.
    #[serde(default)]
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The call.
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// A function's name and what it is called with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// Its arguments as JSON text.
    pub arguments: String,
}

/// The answer, whole.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatResponse {
    /// The answer's id.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// What it took.
    pub usage: Usage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which of them.
    pub index: usize,
    /// The message.
    pub message: AnswerMessage,
    /// The log-probabilities of its tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<&'static str>,
}

/// The message that answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// What it says; `null` if it only calls functions.
    pub content: Option<String>,
    /// Always `null`.
    pub refusal: Option<String>,
    /// The functions that it calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// The log-probabilities of an answer's tokens.
#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<ChatTokenLogprob>,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    /// Its text, with U+FFFD for bytes that are no character by themselves.
    pub token: String,
    /// Its natural-log probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What else could have stood there, most likely first.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// How likely another token was.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// Its natural-log probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A piece of the answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk {
    /// The answer's id.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// When it was asked for, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The pieces: one, or none in the event with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// What it took: in the last event, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A piece of one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunkChoice {
    /// Of which answer.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// The log-probabilities of its tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the answer ended, in its last piece.
    pub finish_reason: Option<&'static str>,
}

/// What is new in a piece.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChatDelta {
    /// `assistant`, in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// More of a call of a function.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which call of the answer.
    pub index: usize,
    /// What its answer refers to: where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, where the call begins.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// More of the call.
    pub function: FunctionCallDelta,
}

/// More of a function's name and of what it is called with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct FunctionCallDelta {
    /// Its name, where the call begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of its arguments.
    pub arguments: String,
}
