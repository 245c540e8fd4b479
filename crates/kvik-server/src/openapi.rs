//! The API's own description, from the types and routes themselves.

use serde::Deserialize;
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        SecurityRequirement,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use crate::{
    error::{ErrorBody, ErrorDetail},
    routes,
    wire::{
        ModelCard, ModelList,
        chat::{ChatChunk, ChatRequest},
        completion::CompletionRequest,
        generation::GenerationFields,
        response::ResponsesRequest,
    },
};

/// A conversation, and how its next message is to be generated.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, read in two parts")]
pub struct ChatBody {
    /// The conversation.
    #[serde(flatten)]
    pub chat: ChatRequest,
    /// How to generate.
    #[serde(flatten)]
    pub generation: GenerationFields,
}

/// A text, and how it is to be continued.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, read in two parts")]
pub struct CompletionBody {
    /// The text.
    #[serde(flatten)]
    pub completion: CompletionRequest,
    /// How to generate.
    #[serde(flatten)]
    pub generation: GenerationFields,
}

/// A conversation, and how its next message is to be generated.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, read in two parts")]
pub struct ResponsesBody {
    /// The conversation.
    #[serde(flatten)]
    pub responses: ResponsesRequest,
    /// How to generate.
    #[serde(flatten)]
    pub generation: GenerationFields,
}

/// What the service says of itself. There is more than what is described here: rates, latencies, sums.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct ServiceReport {
    /// Requests that are being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// What the last forward pass was made of.
    pub last_step: BatchReport,
    /// Memory of keys and values.
    pub kv: KvMemory,
    /// The prefixes that requests share, as trees; one for each who shares. No texts and no tokens.
    pub prefix_trees: Vec<PrefixTreeReport>,
}

/// What a forward pass is made of.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct BatchReport {
    /// Sequences in it.
    pub sequences: usize,
    /// Tokens that continue answers.
    pub decode_tokens: usize,
    /// Tokens of prompts.
    pub prefill_tokens: usize,
    /// Tokens of answers that are computed again after a preemption.
    pub replay_tokens: usize,
}

/// Memory of keys and values.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct KvMemory {
    /// Bytes of RAM that they may take.
    pub budget_bytes: usize,
    /// Bytes of RAM that they take.
    pub ram_bytes: usize,
    /// Bytes of files that they take, those that are in RAM as well included.
    pub file_bytes: usize,
    /// The same by what the bytes are.
    pub encodings: Vec<KvEncoding>,
}

/// Bytes in one encoding.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct KvEncoding {
    /// `bf16`, `bf16-copies`, `merged-layers`, `affine-2-bits` and the like, `low-rank`.
    pub encoding: String,
    /// Bytes of RAM.
    pub ram_bytes: usize,
    /// Bytes of files, those that are in RAM as well included.
    pub file_bytes: usize,
}

/// The prefixes of those who share with each other.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct PrefixTreeReport {
    /// True if all keys share it.
    pub shared_by_all: bool,
    /// The key whose it is, if it is one's.
    pub owner: Option<String>,
    /// The nodes that were used last; each stands behind its parent, and before the parent's next child.
    pub nodes: Vec<PrefixNodeReport>,
    /// Children of the root, listed or not.
    pub children: usize,
}

/// A node of a tree of prefixes.
#[derive(Deserialize, ToSchema)]
#[expect(dead_code, reason = "described to clients, written by the service")]
pub struct PrefixNodeReport {
    /// Tells it from all others; whoever comes after it may have the same.
    pub id: u32,
    /// Nodes between the root and this one.
    pub depth: usize,
    /// Tokens that it adds to those of its parent.
    pub tokens: usize,
    /// Tokens from the beginning of a prompt to its end.
    pub prefix_tokens: usize,
    /// Bytes that it adds to those of its parent.
    pub bytes: usize,
    /// Requests that began with a prefix that ends in it.
    pub hits: u64,
    /// Requests that use it right now.
    pub locks: usize,
    /// Children, listed or not.
    pub children: usize,
    /// When it was last used, in seconds of `uptime_seconds`.
    pub last_used_seconds: f64,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Kvik", description = "OpenAI's API over a language model whose KV cache is programmable"),
    paths(
        routes::chat::chat,
        routes::completions::complete,
        routes::responses::respond,
        routes::embeddings::embed,
        routes::models::list,
        routes::models::one,
        routes::tokens::tokenize,
        routes::tokens::detokenize,
        routes::status::health,
        routes::status::metrics,
        routes::status::kv,
        routes::status::openapi,
    ),
    components(schemas(ChatChunk, ErrorBody, ErrorDetail, ModelCard, ModelList)),
    modifiers(&Keys),
)]
struct Description;

/// Says that a key is sent as a bearer token.
struct Keys;

impl Modify for Keys {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_with(Default::default);
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        let none: [&str; 0] = [];
        openapi.security = Some(vec![SecurityRequirement::new("key", none)]);
    }
}

/// The description.
pub fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_reference_leads_somewhere() {
        let text = serde_json::to_string(&super::description()).unwrap();
        let description: serde_json::Value = serde_json::from_str(&text).unwrap();
        for path in
            ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models"]
        {
            assert!(description["paths"][path].is_object(), "{path}");
        }
        let mut references = 0;
        for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let pointer = reference.trim_start_matches('#');
            assert!(description.pointer(pointer).is_some(), "{reference} leads nowhere");
            references += 1;
        }
        assert!(references > 30, "{references}");
    }
}
