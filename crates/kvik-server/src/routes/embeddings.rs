//! `/v1/embeddings`: texts become vectors.
//!
//! A vector is the mean of the model's last hidden states, after its final norm, over the tokens of a text, scaled to
//! length 1. A language model is not trained for it, so the vectors serve to compare texts roughly; a model made for
//! search does that better.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{Request, State},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use kvik_engine::{Request as ServiceRequest, Update};

use super::{json, receive_plain};
use crate::{
    app::App,
    error::{ApiError, ErrorBody},
    generation::{failed, prompt, refused},
    wire::embedding::{Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, Vector},
};

/// Turn texts into vectors
///
/// A vector is the mean of the model's last hidden states over the tokens of a text, scaled to length 1.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "generate", request_body = EmbeddingRequest,
    responses(
        (status = 200, description = "The vectors", body = EmbeddingResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn embed(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (asked, admission, memory) = receive_plain::<EmbeddingRequest>(&app, request).await?;
    let base64 = match asked.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "encoding_format must be float or base64";
            return Err(ApiError::invalid(message).param("encoding_format"));
        }
    };
    let dimensions = asked.dimensions;
    let texts = app
        .prepare(memory, move |app| {
            app.check_model(asked.model.as_deref())?;
            prompt::texts(app, asked.input, "input")
        })
        .await?;
    let deadline = app.config.request_timeout.map(|time| Instant::now() + time);
    let prompt_tokens = texts.iter().map(Vec::len).sum();
    let mut replies = Vec::with_capacity(texts.len());
    for prompt in texts {
        if prompt.is_empty() {
            return Err(ApiError::invalid("a text is empty: it has no vector").param("input"));
        }
        let request = ServiceRequest {
            prompt,
            deadline,
            owner: admission.caller().name.clone(),
            priority: admission.caller().priority,
            want_hidden: true,
            ..ServiceRequest::default()
        };
        replies.push(app.service.submit(request).map_err(|error| refused(error, "input"))?);
    }
    admission.charge(prompt_tokens);
    let mut data = Vec::with_capacity(replies.len());
    for (index, mut reply) in replies.into_iter().enumerate() {
        let vector = loop {
            match reply.next().await {
                Some(Update::Embedding(vector)) => break of_length_one(vector),
                Some(Update::Failed(error)) => return Err(failed(&error)),
                Some(_) => {}
                None => return Err(ApiError::internal("the service ended before the vector was there")),
            }
        };
        if let Some(asked) = dimensions.filter(|&asked| asked != vector.len()) {
            let message = format!("dimensions is {asked}: the vectors of this model have {}", vector.len());
            return Err(ApiError::invalid(message).param("dimensions"));
        }
        let embedding = if base64 { Vector::Base64(in_base64(&vector)) } else { Vector::Floats(vector) };
        data.push(Embedding { object: "embedding", index, embedding });
    }
    app.metrics.prompt(prompt_tokens, 0);
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    Ok(json(&EmbeddingResponse { object: "list", data, model: app.config.model_name.clone(), usage }))
}

/// Scaled, so that products of vectors are cosines. Nothing stays nothing.
fn of_length_one(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 && length.is_finite() {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

fn in_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}
