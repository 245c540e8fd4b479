//! Bodies of requests: read within limits, then taken apart.
//!
//! A body may take so many bytes and so much time, and all bodies together may take so many bytes of memory, until their requests
//! are prepared: what is taken apart is no smaller than what was read. Who comes when they are taken is told to come back. What is
//! wrong with a field is said with its name.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The longest sentence that a parser's complaint is given, in characters: it may quote what was sent.
const LONGEST_COMPLAINT: usize = 300;

/// Memory for bodies, shared by all requests.
#[derive(Debug)]
pub struct BodyBudget {
    limit: usize,
    used: AtomicUsize,
}

/// Memory that one body, and what it was taken apart into, takes; dropping it gives it back.
#[derive(Debug)]
pub struct BodyMemory {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl BodyBudget {
    /// Room for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0) }
    }

    /// Bytes that are taken.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl BodyMemory {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) > self.budget.limit {
            let message =
                "the server is reading as many requests as it has memory for: try again in a moment";
            return Err(ApiError::overloaded(message, Duration::from_secs(1)));
        }
        Ok(())
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How much a body may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes.
    pub bytes: usize,
    /// Time until it has arrived.
    pub time: Duration,
}

/// Reads a body and gives it to `parse`. Its memory counts as taken until what is returned with the value is dropped.
///
/// # Errors
/// 413, 408 and 429 for the three limits, 400 if the connection breaks off, and what `parse` says.
pub async fn read<T>(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
    budget: &Arc<BodyBudget>,
    parse: impl FnOnce(&[u8]) -> Result<T, ApiError>,
) -> Result<(T, BodyMemory), ApiError> {
    let too_large = || {
        let limit = limits.bytes;
        ApiError::too_large(format!(
            "the request's body has more than the {limit} bytes that this server reads"
        ))
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limits.bytes as u64) {
        return Err(too_large());
    }
    let mut memory = BodyMemory { budget: Arc::clone(budget), bytes: 0 };
    let mut bytes = Vec::new();
    let all = async {
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| ApiError::invalid(format!("the request broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limits.bytes {
                return Err(too_large());
            }
            memory.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    tokio::time::timeout(limits.time, all).await.unwrap_or_else(|_| {
        let seconds = limits.time.as_secs();
        Err(ApiError::too_slow(format!("the request's body did not arrive within {seconds} seconds")))
    })?;
    Ok((parse(&bytes)?, memory))
}

/// The value that a JSON text writes.
///
/// # Errors
/// 400 with the field that is wrong.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = shortened(&error.path().to_string());
        let inner = error.into_inner();
        let what = shortened(&inner.to_string());
        let param = match path.as_str() {
            "." | "?" => missing_field(&what).map(str::to_owned),
            path => Some(path.to_owned()),
        };
        let message = match &param {
            _ if inner.is_syntax() || inner.is_eof() => {
                format!("the request's body is not valid JSON: {what}")
            }
            Some(param) => format!("{param}: {what}"),
            None => format!("the request's body: {what}"),
        };
        let error = ApiError::invalid(message).code("invalid_json");
        param.map_or(error.clone(), |param| error.param(param))
    })?;
    deserializer.end().map_err(|error| {
        ApiError::invalid(format!("the request's body is not valid JSON: {error}")).code("invalid_json")
    })?;
    Ok(value)
}

/// The name in "missing field `name` at line 1 column 2".
fn missing_field(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.split('`').next()
}

/// A complaint without what makes it endless.
fn shortened(message: &str) -> String {
    match message.char_indices().nth(LONGEST_COMPLAINT) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{chat::ChatRequest, completion::CompletionRequest, generation::GenerationFields};

    fn complaint<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> (String, Option<String>) {
        let error = json::<T>(text.as_bytes()).unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
        (error.message, error.param)
    }

    #[test]
    fn a_complaint_names_the_field() {
        let (_, param) = complaint::<ChatRequest>("{}");
        assert_eq!(param.as_deref(), Some("messages"));
        let (_, param) = complaint::<ChatRequest>(r#"{"messages": [{"role": "user"}, {"role": 7}]}"#);
        assert_eq!(param.as_deref(), Some("messages[1].role"));
        let (message, param) = complaint::<CompletionRequest>(r#"{"prompt": {"a": 1}}"#);
        assert_eq!(param.as_deref(), Some("prompt"));
        assert!(message.contains("a list of token ids"), "{message}");
        let (_, param) = complaint::<GenerationFields>(r#"{"temperature": "warm"}"#);
        assert_eq!(param.as_deref(), Some("temperature"));
    }

    #[test]
    fn what_is_no_json_is_said_to_be_none() {
        for text in ["", "{", "{\"messages\": [}", "nonsense", "\u{0}", "{} {}", "{\"messages\":[],}"] {
            let (message, _) = complaint::<ChatRequest>(text);
            assert!(message.contains("not valid JSON") || text == "{} {}", "{text}: {message}");
        }
        assert!(json::<ChatRequest>(&[b'{', 0xff, b'}']).is_err());
    }

    #[test]
    fn nothing_nests_deep_enough_to_matter() {
        let deep = "[".repeat(2_000_000);
        complaint::<ChatRequest>(&deep);
        complaint::<ChatRequest>(&format!("{{\"messages\": {deep}"));
        complaint::<ChatRequest>(&format!("{{\"unknown\": {deep}"));
        complaint::<GenerationFields>(&format!(
            "{{\"response_format\": {{\"type\": \"json_schema\", \"json_schema\": {{\"schema\": {deep}"
        ));
    }

    #[test]
    fn a_complaint_does_not_give_everything_back() {
        let (message, _) =
            complaint::<GenerationFields>(&format!("{{\"n\": \"{}\"}}", "x".repeat(1_000_000)));
        assert!(message.len() < 1000);
    }

    #[tokio::test]
    async fn memory_of_bodies_is_bounded_and_given_back() {
        let budget = Arc::new(BodyBudget::new(10));
        let limits = BodyLimits { bytes: 8, time: Duration::from_secs(5) };
        let read = async |text: &'static str| {
            let seen = |bytes: &[u8]| Ok((bytes.len(), budget.used_bytes()));
            super::read(&HeaderMap::new(), Body::from(text), limits, &budget, seen).await
        };
        let (seen, memory) = read("12345678").await.unwrap();
        assert_eq!(seen, (8, 8));
        // It is held for as long as the request needs what was read.
        assert_eq!(read("123").await.unwrap_err().status.as_u16(), 429);
        assert_eq!(budget.used_bytes(), 8);
        drop(memory);
        assert_eq!(budget.used_bytes(), 0);
        assert_eq!(read("123456789").await.unwrap_err().status.as_u16(), 413);
        let _other = {
            let mut other = BodyMemory { budget: Arc::clone(&budget), bytes: 0 };
            other.grow(5).unwrap();
            other
        };
        assert_eq!(read("123456").await.unwrap_err().status.as_u16(), 429);
        assert_eq!(budget.used_bytes(), 5);
    }
}
