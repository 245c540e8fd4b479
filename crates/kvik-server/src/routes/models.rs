//! `/v1/models`: what there is to ask.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};

use super::json;
use crate::{
    app::App,
    error::{ApiError, ErrorBody},
    wire::{ModelCard, ModelList},
};

/// The models
#[utoipa::path(
    get, path = "/v1/models", tag = "models",
    responses((status = 200, description = "The one model of this server", body = ModelList)),
)]
pub async fn list(State(app): State<Arc<App>>) -> Response {
    json(&ModelList { object: "list", data: vec![card(&app)] })
}

/// One model
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "There is no such model", body = ErrorBody),
    ),
)]
pub async fn one(State(app): State<Arc<App>>, Path(model): Path<String>) -> Result<Response, ApiError> {
    app.check_model(Some(&model))?;
    Ok(json(&card(&app)))
}

fn card(app: &App) -> ModelCard {
    ModelCard {
        id: app.config.model_name.clone(),
        object: "model",
        created: app.created(),
        owned_by: "kvik",
        context_tokens: app.facts().context_tokens,
        chat: app.chat_template().is_ok(),
    }
}
