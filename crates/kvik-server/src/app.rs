//! What all requests share: the service, the configuration, keys, figures.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{body::Body, http::HeaderMap};
use kvik_engine::{ConstraintCompiler, ConstraintError, EngineFacts, Service};
use kvik_model::{ChatTemplate, Tokenizer};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::{
    body::{self, BodyBudget, BodyLimits, BodyMemory},
    config::Config,
    error::ApiError,
    keys::Keys,
    metrics::Metrics,
};

/// Requests whose prompts are written out and tokenised at the same time: chat templates run on large stacks.
const PREPARING: usize = 4;

/// What all requests share.
pub struct App {
    /// What generates.
    pub service: Arc<Service>,
    /// How the server runs.
    pub config: Config,
    /// Who may use it.
    pub keys: Keys,
    /// What is counted.
    pub metrics: Metrics,
    bodies: Arc<BodyBudget>,
    /// Places of requests that are being prepared or wait for it, and of those the ones that are.
    to_prepare: Arc<Semaphore>,
    preparing: Arc<Semaphore>,
    constraints: OnceLock<Result<ConstraintCompiler, ConstraintError>>,
    draining: AtomicBool,
    created: u64,
    ids: Ids,
}

/// Makes ids that no two requests have in common, not even those of two servers.
struct Ids {
    seed: [u8; 32],
    next: AtomicU64,
}

impl App {
    /// Serves `service` as `config` says.
    pub fn new(service: Arc<Service>, config: Config) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = Sha256::digest(format!("{} {}", now.as_nanos(), std::process::id()));
        Self {
            keys: Keys::new(config.keys.clone(), config.limits),
            metrics: Metrics::default(),
            bodies: Arc::new(BodyBudget::new(config.max_bodies_bytes)),
            to_prepare: Arc::new(Semaphore::new(
                config.max_waiting.saturating_add(PREPARING).min(Semaphore::MAX_PERMITS),
            )),
            preparing: Arc::new(Semaphore::new(PREPARING)),
            constraints: OnceLock::new(),
            draining: AtomicBool::new(false),
            created: now.as_secs(),
            ids: Ids { seed: seed.into(), next: AtomicU64::new(0) },
            service,
            config,
        }
    }

    /// What is known of the model.
    pub fn facts(&self) -> &EngineFacts {
        self.service.shared()
    }

    /// How the model wants a conversation written.
    ///
    /// # Errors
    /// 400 if the model has no chat template, or a broken one.
    pub fn chat_template(&self) -> Result<&ChatTemplate, ApiError> {
        match &self.facts().chat_template {
            Ok(Some(template)) => Ok(template),
            Ok(None) => {
                let name = &self.config.model_name;
                let message = format!("{name} has no chat template, it is a base model: use /v1/completions");
                Err(ApiError::invalid(message).param("model"))
            }
            Err(error) => Err(ApiError::invalid(error.to_string()).param("model")),
        }
    }

    /// What cuts text into tokens.
    ///
    /// # Errors
    /// 400 if the model has none that can be used.
    pub fn tokenizer(&self) -> Result<&Tokenizer, ApiError> {
        let tokenizer = self.facts().tokenizer.as_ref();
        tokenizer.map_err(|error| ApiError::invalid(error.to_string()).param("model"))
    }

    /// What makes constraints for answers of this model; made when it is first asked for.
    ///
    /// # Errors
    /// 400 if the model's tokens cannot be used for it.
    pub fn constraints(&self) -> Result<&ConstraintCompiler, ApiError> {
        let tokenizer = self.tokenizer()?;
        let compiler = self.constraints.get_or_init(|| ConstraintCompiler::new(tokenizer));
        compiler.as_ref().map_err(|error| ApiError::invalid(error.to_string()).param("response_format"))
    }

    /// When the server started, in seconds since 1970.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Takes no new requests from here on; what runs goes on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.service.drain();
    }

    /// Whether no new requests are taken.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A new id that begins with `prefix`.
    pub fn id(&self, prefix: &str) -> String {
        let number = self.ids.next.fetch_add(1, Ordering::Relaxed);
        let digest = Sha256::new().chain_update(self.ids.seed).chain_update(number.to_le_bytes()).finalize();
        let hex = digest.iter().take(12).map(|byte| format!("{byte:02x}"));
        hex.fold(prefix.to_owned(), |id, byte| id + &byte)
    }

    /// Fails unless `asked` is the model of this server.
    pub fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        let name = &self.config.model_name;
        match asked {
            Some(asked) if asked != name && !asked.is_empty() => {
                let asked: String = asked.chars().take(100).collect();
                let message =
                    format!("there is no model '{asked}' here: ask for '{name}', or for none by name");
                Err(ApiError::not_found(message).param("model").code("model_not_found"))
            }
            _ => Ok(()),
        }
    }

    /// Reads a request's body and gives it to `parse`; its memory is for [`Self::prepare`].
    ///
    /// # Errors
    /// As [`body::read`].
    pub async fn read<T>(
        &self,
        headers: &HeaderMap,
        body: Body,
        parse: impl FnOnce(&[u8]) -> Result<T, ApiError>,
    ) -> Result<(T, BodyMemory), ApiError> {
        let limits = BodyLimits { bytes: self.config.max_body_bytes, time: self.config.body_timeout };
        body::read(headers, body, limits, &self.bodies, parse).await
    }

    /// Memory that bodies of requests take right now.
    pub fn body_bytes(&self) -> usize {
        self.bodies.used_bytes()
    }

    /// Does work that takes the processor for a while where it stops nobody else, a few at a time. The `memory` of the request's body
    /// is given back when it is done.
    ///
    /// # Errors
    /// What `work` says; 429 if too many wait for it; 500 if it fails.
    pub async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        memory: BodyMemory,
        work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed =
            || ApiError::internal("the request could not be prepared: this is a fault of the server");
        let place = Arc::clone(&self.to_prepare).try_acquire_owned().map_err(|_| {
            let message = "as many requests as may wait are waiting to be read: try again in a moment";
            ApiError::overloaded(message, Duration::from_secs(1))
        })?;
        // The work holds all of it, for it goes on when nobody waits for it any more.
        let permit = Arc::clone(&self.preparing).acquire_owned().await.map_err(|_| failed())?;
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let _held = (permit, place, memory);
            work(&app)
        })
        .await;
        done.unwrap_or_else(|_| {
            self.metrics.panic();
            Err(failed())
        })
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
