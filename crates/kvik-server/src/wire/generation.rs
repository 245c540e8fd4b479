//! The fields that say how to generate, the same on all routes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// How to generate. A field that is left out has the default of Kvik's command line.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct GenerationFields {
    /// The model's name; the server has one, so it may be left out.
    pub model: Option<String>,
    /// 0 takes the most likely token always; higher is more surprising (0 to 10).
    pub temperature: Option<f32>,
    /// Draw from the most likely tokens that make up this much of the probability.
    pub top_p: Option<f32>,
    /// Draw from this many of the most likely tokens; 0 turns it off. An extension.
    pub top_k: Option<usize>,
    /// Draw from tokens at least this many times as likely as the most likely one. An extension.
    pub min_p: Option<f32>,
    /// Make tokens that occurred lately less likely; 1 turns it off. An extension.
    pub repeat_penalty: Option<f32>,
    /// Taken from a token's logit once for each time that the answer has it (-2 to 2).
    pub frequency_penalty: Option<f32>,
    /// Taken from a token's logit if the answer has it (-2 to 2).
    pub presence_penalty: Option<f32>,
    /// Added to logits, by token id (-100 to 100).
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// The same seed and request give the same answer; the i-th of several answers has seed + i.
    pub seed: Option<i64>,
    /// Strings that end the answer; they are not part of it.
    pub stop: Option<Stop>,
    /// How many answers.
    pub n: Option<usize>,
    /// Tokens of the answer at most.
    pub max_tokens: Option<usize>,
    /// The same, by its newer name.
    pub max_completion_tokens: Option<usize>,
    /// Tokens of the answer at least: it does not end before. An extension.
    pub min_tokens: Option<usize>,
    /// Go on after the model has ended its answer, for measurements. An extension.
    pub ignore_eos: Option<bool>,
    /// Send the answer as it comes, as server-sent events.
    pub stream: Option<bool>,
    /// What else to send.
    pub stream_options: Option<StreamOptions>,
    /// What form the answer must have.
    pub response_format: Option<ResponseFormat>,
    /// The pipeline that rewrites this request's cache, such as `snapkv(budget=512)+kivi(bits=4)`. An extension.
    pub kv: Option<String>,
    /// Below 0 lets all others go first. An extension.
    pub priority: Option<i32>,
}

/// One string or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings is needed")]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What a stream carries besides the answer.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last event says what the request took.
    pub include_usage: Option<bool>,
}

/// What form an answer must have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`, or one of the extensions `grammar` and `regex`.
    #[serde(rename = "type")]
    pub kind: String,
    /// With `json_schema`: the schema.
    pub json_schema: Option<JsonSchema>,
    /// With `grammar`: a grammar in Lark's notation.
    pub grammar: Option<String>,
    /// With `regex`: a regular expression that the whole answer matches.
    pub regex: Option<String>,
}

/// A JSON schema and its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients; names change nothing, and all schemas are strict")]
pub struct JsonSchema {
    /// What it is called.
    pub name: Option<String>,
    /// The schema; without it any JSON value is fine.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    /// Always as if true: the answer matches the schema.
    pub strict: Option<bool>,
}
