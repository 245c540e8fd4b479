//! What the server is and does: `/health`, `/metrics`, `/v1/kv`, `/openapi.json`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use kvik_kv::{methods::METHODS, pipeline::MethodInfo};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::json as answer;
use crate::{app::App, error::ApiError, keys::Caller};

/// Whether the server takes requests.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`, `draining`, or `failed` when the service must be restarted.
    pub status: &'static str,
    /// Kvik's version.
    pub version: &'static str,
}

/// What the cache holds and does.
#[derive(Debug, Serialize, ToSchema)]
pub struct KvReport {
    /// The model.
    pub model: String,
    /// The pipeline of requests that name none.
    pub pipeline: String,
    /// Who shares the prefixes of whom: `off`, `per-key` or `all`.
    pub prefix_sharing: &'static str,
    /// What the service says of itself: requests, batches, memory by place and encoding, the prefix tree.
    #[schema(value_type = kvik_engine::service::Status)]
    pub service: Value,
    /// The methods that pipelines are made of.
    pub methods: Vec<MethodCard>,
}

/// A method that pipelines are made of.
#[derive(Debug, Serialize, ToSchema)]
pub struct MethodCard {
    /// Its name in pipelines.
    pub name: &'static str,
    /// What it changes.
    pub changes: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// Its parameters.
    pub parameters: Vec<ParameterCard>,
}

/// A parameter of a method.
#[derive(Debug, Serialize, ToSchema)]
pub struct ParameterCard {
    /// Its name in pipelines.
    pub name: &'static str,
    /// What it must be.
    pub kind: String,
    /// What it is if the pipeline does not say.
    pub default: &'static str,
    /// What it means.
    pub about: &'static str,
}

/// Whether the server takes requests
#[utoipa::path(
    get, path = "/health", tag = "status",
    responses(
        (status = 200, description = "It does", body = Health),
        (status = 503, description = "It is about to end, or has failed", body = Health),
    ),
    security(()),
)]
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, code) = match app.is_draining() {
        _ if !app.service.status().healthy => ("failed", StatusCode::SERVICE_UNAVAILABLE),
        true => ("draining", StatusCode::SERVICE_UNAVAILABLE),
        false => ("ok", StatusCode::OK),
    };
    (code, answer(&Health { status, version: env!("CARGO_PKG_VERSION") })).into_response()
}

/// Figures for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "status",
    responses((status = 200, description = "In OpenMetrics text", body = String, content_type = "application/openmetrics-text")),
)]
pub async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.metrics.bodies(app.body_bytes());
    let page = app.metrics.page(&status(&app)?);
    let page = page.map_err(|error| ApiError::internal(format!("the figures cannot be written: {error}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page).into_response())
}

/// What the cache holds: pipelines in force, memory by place and encoding, the prefix tree
#[utoipa::path(
    get, path = "/v1/kv", tag = "status",
    responses((status = 200, description = "The cache", body = KvReport)),
)]
pub async fn kv(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Arc<Caller>>,
) -> Result<Response, ApiError> {
    let mut service = status(&app)?;
    // With several keys, nobody sees what others do.
    if app.keys.len() > 1 {
        let own = |one: &Value| one["owner"].as_str() == caller.name.as_deref();
        if let Some(owners) = service["owners"].as_array_mut() {
            owners.retain(own);
        }
        if let Some(trees) = service["prefix_trees"].as_array_mut() {
            trees.retain(|tree| tree["shared_by_all"] == true || own(tree));
        }
    }
    Ok(answer(&KvReport {
        model: app.config.model_name.clone(),
        pipeline: app.config.pipeline.to_string(),
        prefix_sharing: app.config.sharing.name(),
        service,
        methods: METHODS.iter().map(|method| card(method)).collect(),
    }))
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", tag = "status",
    responses((status = 200, description = "The API in OpenAPI 3.1", body = Value)),
    security(()),
)]
pub async fn openapi() -> Response {
    answer(&crate::openapi::description())
}

fn status(app: &App) -> Result<Value, ApiError> {
    serde_json::to_value(app.service.status())
        .map_err(|error| ApiError::internal(format!("the service's status cannot be written: {error}")))
}

fn card(method: &'static MethodInfo) -> MethodCard {
    let parameters = method.parameters.iter().map(|parameter| ParameterCard {
        name: parameter.name,
        kind: parameter.kind.to_string(),
        default: parameter.default,
        about: parameter.about,
    });
    MethodCard {
        name: method.name,
        changes: method.direction.about(),
        summary: method.summary,
        paper: method.paper,
        parameters: parameters.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_card() {
        let names: Vec<&str> = METHODS.iter().map(|method| card(method).name).collect();
        assert!(names.contains(&"snapkv") && names.contains(&"kivi"), "{names:?}");
    }
}
