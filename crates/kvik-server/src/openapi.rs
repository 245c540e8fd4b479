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
