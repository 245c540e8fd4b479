//! `/tokenize` and `/detokenize`: text to tokens and back.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use kvik_model::tokenizer::EncodeOptions;

use super::{json, receive_plain};
use crate::{
    app::App,
    error::{ApiError, ErrorBody},
    generation::{prompt, tool_use::ToolUse},
    wire::token::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse},
};

/// Cut a text or a conversation into tokens
#[utoipa::path(
    post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses(
        (status = 200, description = "The tokens", body = TokenizeResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (asked, _admission, memory) = receive_plain::<TokenizeRequest>(&app, request).await?;
    let answer = app.prepare(memory, move |app| tokens(app, asked)).await?;
    Ok(json(&answer))
}

fn tokens(app: &App, asked: TokenizeRequest) -> Result<TokenizeResponse, ApiError> {
    let tokenizer = app.tokenizer()?;
    let tokens = match (asked.content, asked.messages) {
        (Some(text), None) => {
            let options =
                EncodeOptions { add_special: asked.add_special.unwrap_or(false), parse_special: true };
            let encoded = tokenizer.encode(&text, options);
            encoded.map_err(|error| ApiError::invalid(error.to_string()).param("content"))?
        }
        (None, Some(messages)) => {
            prompt::conversation(app, &messages, &ToolUse::none(), serde_json::Map::new())?
        }
        _ => return Err(ApiError::invalid("give either content or messages").param("content")),
    };
    let with_pieces = asked.with_pieces.unwrap_or(false);
    if with_pieces {
        within_context(app, tokens.len(), "with_pieces")?;
    }
    Ok(TokenizeResponse {
        count: tokens.len(),
        pieces: with_pieces.then(|| tokens.iter().map(|&id| tokenizer.token_text(id)).collect()),
        max_model_len: app.facts().context_tokens,
        tokens,
    })
}

/// Fails for more tokens than a sequence can have: to write each of them out takes many times the memory of the request.
fn within_context(app: &App, tokens: usize, param: &str) -> Result<(), ApiError> {
    let most = app.facts().context_tokens;
    if tokens <= most {
        return Ok(());
    }
    let message = format!("{tokens} tokens: send at most {most} at a time, as many as the context has");
    Err(ApiError::invalid(message).param(param))
}

/// Write tokens out as text
#[utoipa::path(
    post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses(
        (status = 200, description = "The text", body = DetokenizeResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (asked, _admission, memory) = receive_plain::<DetokenizeRequest>(&app, request).await?;
    let answer = app
        .prepare(memory, move |app| {
            within_context(app, asked.tokens.len(), "tokens")?;
            let content = app.tokenizer()?.decode(&asked.tokens, asked.keep_special.unwrap_or(true));
            Ok(DetokenizeResponse { prompt: content.clone(), content })
        })
        .await?;
    Ok(json(&answer))
}
