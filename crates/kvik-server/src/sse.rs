//! Server-sent events: an answer as it comes.
//!
//! An event is a line `data: JSON` and an empty line; `data: [DONE]` ends the stream. While nothing comes a comment is
//! sent now and then, so that nobody between client and server takes the connection for dead. When the client goes
//! away the stream is dropped, with it what it waits for, and with that the request.

use std::{convert::Infallible, future::Future, panic::AssertUnwindSafe, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::{FutureExt, stream};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::error::ApiError;

/// How long nothing may come before a comment is sent.
const QUIET: Duration = Duration::from_secs(10);

/// Events that are still to be written.
#[derive(Debug, Default)]
pub struct Events {
    text: Vec<u8>,
}

impl Events {
    /// An event with `data` as JSON.
    pub fn data(&mut self, data: &impl Serialize) {
        self.text.extend_from_slice(b"data: ");
        self.json(data);
    }

    /// An event of a kind, with `data` as JSON.
    pub fn named(&mut self, kind: &str, data: &impl Serialize) {
        self.text.extend_from_slice(format!("event: {kind}\ndata: ").as_bytes());
        self.json(data);
    }

    /// The event that ends a stream.
    pub fn done(&mut self) {
        self.text.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn json(&mut self, data: &impl Serialize) {
        // JSON has no line breaks outside of strings, and none unescaped in them.
        if serde_json::to_writer(&mut self.text, data).is_err() {
            self.text.extend_from_slice(b"null");
        }
        self.text.extend_from_slice(b"\n\n");
    }
}

/// What events come from.
pub trait EventSource: Send + 'static {
    /// Waits for what is next, writes its events and says whether there is more. It is cancelled and called again
    /// when nothing has come for a while, so nothing may be lost where it waits.
    fn next(&mut self, events: &mut Events) -> impl Future<Output = bool> + Send;
}

/// The answer that carries the events of `source`. Its faults are counted by `panics`.
pub fn response(source: impl EventSource, panics: Counter) -> Response {
    let stream = stream::unfold(Some((source, panics)), |state| async {
        let (mut source, panics) = state?;
        let mut events = Events::default();
        // A fault here would end the connection without a word.
        let next = AssertUnwindSafe(source.next(&mut events)).catch_unwind();
        let more = match tokio::time::timeout(QUIET, next).await {
            Ok(Ok(more)) => more,
            Ok(Err(_)) => {
                panics.inc();
                tracing::error!("a stream failed by a fault of the server");
                events.data(&ApiError::internal("the answer broke off by a fault of the server").body());
                false
            }
            Err(_) => {
                events.text.extend_from_slice(b": waiting\n\n");
                true
            }
        };
        Some((Ok::<_, Infallible>(Bytes::from(events.text)), more.then_some((source, panics))))
    });
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that would collect the answer before they pass it on let it through.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    /// Says one thing, then fails.
    struct Broken(bool);

    impl EventSource for Broken {
        async fn next(&mut self, events: &mut Events) -> bool {
            assert!(!std::mem::replace(&mut self.0, true), "broken");
            events.data(&"said");
            true
        }
    }

    #[tokio::test]
    async fn a_fault_ends_the_stream_with_a_word_and_is_counted() {
        let panics = Counter::default();
        let answer = response(Broken(false), panics.clone());
        let text = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.starts_with("data: \"said\"\n\n") && text.contains("internal_error"), "{text}");
        assert_eq!(panics.get(), 1);
    }
}
