//! The routes, and what every request passes before it reaches one.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
pub mod responses;
pub mod status;
pub mod tokens;

use std::{any::Any, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, Any as AnyOf, CorsLayer},
};
use tracing::Instrument;

use crate::{
    app::App,
    body::{self, BodyMemory},
    error::ApiError,
    keys::Caller,
    limits::Admission,
    pages::pages,
    wire::generation::GenerationFields,
};

/// The header that carries a request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a client.
const LONGEST_ID: usize = 128;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::respond))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/kv", get(status::kv))
        .route("/metrics", get(status::metrics))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&app), authenticate));
    let open =
        Router::new().route("/health", get(status::health)).route("/openapi.json", get(status::openapi));
    let panicked = Arc::clone(&app);
    let router = keyed
        .merge(open)
        .merge(pages())
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(move |panic| after_panic(&panicked, panic)))
        .with_state(Arc::clone(&app));
    let router = match cors(&app.config.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(middleware::from_fn_with_state(app, observe))
}

/// Gives each request an id, logs it and counts it.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let given = request.headers().get(&REQUEST_ID);
    let given = given.filter(|id| id.len() <= LONGEST_ID && id.to_str().is_ok_and(|id| !id.is_empty()));
    let made = || HeaderValue::from_str(&app.id("req-")).unwrap_or(HeaderValue::from_static("req-"));
    let id = given.cloned().unwrap_or_else(made);
    let shown = id.to_str().unwrap_or_default().to_owned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id = shown);
    let mut response = next.run(request).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id);
    let status = response.status().as_u16();
    app.metrics.request(route.as_deref().unwrap_or("other"), status);
    let key =
        response.extensions().get::<KeyName>().and_then(|KeyName(name)| name.as_deref()).unwrap_or_default();
    let millis = start.elapsed().as_secs_f64() * 1000.0;
    // Paths come from outside: they are escaped, and cut.
    let path: String = path.chars().take(200).collect();
    // Those who watch the server ask all the time.
    let is_look = matches!(route.as_deref(), Some("/metrics" | "/health")) && status < 400;
    span.in_scope(|| match is_look {
        true => tracing::debug!(%method, path = ?path, status, millis, key, "answered"),
        false => tracing::info!(%method, path = ?path, status, millis, key, "answered"),
    });
    response
}

/// The name of the key that a request came with, for the log.
#[derive(Clone)]
struct KeyName(Option<Arc<str>>);

/// Lets nobody in without a key, where there are keys.
async fn authenticate(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = app.keys.caller(request.headers())?;
    let name = KeyName(caller.name.clone());
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    response.extensions_mut().insert(name);
    Ok(response)
}

fn after_panic(app: &App, panic: Box<dyn Any + Send>) -> Response {
    app.metrics.panic();
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    tracing::error!(panic = said, "a request failed by a fault of the server");
    ApiError::internal("the request failed by a fault of the server, which goes on; please report it")
        .into_response()
}

async fn nothing_here(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    ApiError::not_found(format!("there is nothing at {path}; /openapi.json lists what there is"))
}

async fn wrong_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(100).collect();
    let message = format!("{path} is not for {}; /openapi.json says what it is for", request.method());
    ApiError::method_not_allowed(message)
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        // By name: a star does not stand for `authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, header::RETRY_AFTER]);
    Some(if origins.iter().any(|origin| origin == "*") {
        layer.allow_origin(AnyOf)
    } else {
        layer.allow_origin(AllowOrigin::list(
            origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ))
    })
}

/// A request whose body has been read.
pub struct Received<T> {
    /// Its own fields.
    pub own: T,
    /// How to generate.
    pub fields: GenerationFields,
    /// That it was let in.
    pub admission: Admission,
    /// What its body takes, until it is prepared.
    pub memory: BodyMemory,
}

/// Lets a request for generation in and reads its body.
///
/// # Errors
/// 429 for the key's limits, and what is wrong with the body.
pub async fn receive<T: DeserializeOwned>(app: &App, request: Request) -> Result<Received<T>, ApiError> {
    let (admission, headers, body) = admit(request)?;
    let parse = |bytes: &[u8]| Ok((body::json(bytes)?, body::json(bytes)?));
    let ((own, fields), memory) = app.read(&headers, body, parse).await?;
    Ok(Received { own, fields, admission, memory })
}

/// As [`receive`], for a request with its own fields only.
///
/// # Errors
/// As [`receive`].
pub async fn receive_plain<T: DeserializeOwned>(
    app: &App,
    request: Request,
) -> Result<(T, Admission, BodyMemory), ApiError> {
    let (admission, headers, body) = admit(request)?;
    let (own, memory) = app.read(&headers, body, body::json).await?;
    Ok((own, admission, memory))
}

fn admit(request: Request) -> Result<(Admission, HeaderMap, Body), ApiError> {
    let (parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Arc<Caller>>().cloned();
    let caller = caller.ok_or_else(|| ApiError::internal("the request has no sender"))?;
    Ok((Admission::new(caller)?, parts.headers, body))
}

/// An answer in JSON.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => ApiError::internal(format!("the answer cannot be written: {error}")).into_response(),
    }
}
