//! A server that speaks as much of OpenAI's API as a load generator uses, with latencies that are known.
#![allow(dead_code, missing_docs)] // each test uses its part

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// From a request to its first token.
    pub first: Duration,
    /// From each token to the next.
    pub next: Duration,
    /// Whether usage comes at the end of a stream that asks for it.
    pub usage: bool,
    /// Whether requests with these seeds fail, each in its own way: see [`complete`].
    pub trouble: bool,
    /// The name of the text's field that `/tokenize` wants; without one, there is no such route.
    pub tokenize: Option<&'static str>,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(60),
            next: Duration::from_millis(10),
            usage: true,
            trouble: false,
            tokenize: Some("content"),
        }
    }
}

/// What the server saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub bodies: Vec<Value>,
    pub under_way: usize,
    pub most_under_way: usize,
    /// First tokens of prompts that came before: what it "caches".
    prefixes: HashSet<Value>,
}

#[derive(Clone)]
pub struct FakeServer {
    pub manners: Manners,
    pub seen: Arc<Mutex<Seen>>,
}

/// Starts one on this runtime; returns its address.
pub async fn start(manners: Manners) -> (String, FakeServer) {
    let server = FakeServer { manners, seen: Arc::default() };
    let mut router = Router::new()
        .route("/v1/models", get(|| async { Json(json!({"data": [{"id": "fake"}]})) }))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(complete))
        .route("/metrics", get(metrics));
    if manners.tokenize.is_some() {
        router = router.route("/tokenize", post(tokenize));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = router.with_state(server.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, server)
}

/// As if each request that is over had preempted one, and three before them.
async fn metrics(State(server): State<FakeServer>) -> String {
    let seen = server.seen.lock().unwrap();
    let (under_way, preemptions) = (seen.under_way, 3 + seen.bodies.len() - seen.under_way);
    format!(
        "kvik_service{{figure=\"running\"}} {under_way}\nkvik_service{{figure=\"totals.preemptions\"}} {preemptions}\n"
    )
}

/// A token for each byte; strict, as Kvik and vLLM are: unknown fields are no harm, the text's must be there.
async fn tokenize(State(server): State<FakeServer>, Json(body): Json<Value>) -> Response {
    let field = server.manners.tokenize.unwrap_or_default();
    match body[field].as_str() {
        Some(text) => Json(json!({"tokens": text.bytes().collect::<Vec<u8>>()})).into_response(),
        None => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"error": {"message": "no text"}}))).into_response()
        }
    }
}

/// Streams an answer. With trouble, what happens depends on the seed: 1 is overload, 2 a refusal, 3 a connection that ends in
/// the middle, 4 silence, 5 nonsense, 6 an error within the stream.
async fn complete(State(server): State<FakeServer>, Json(body): Json<Value>) -> Response {
    let manners = server.manners;
    let seed = if manners.trouble { body["seed"].as_u64().unwrap_or(0) } else { 0 };
    let tokens = body["max_tokens"].as_u64().unwrap_or(16);
    let is_chat = body.get("messages").is_some();
    let (prompt_tokens, cached) = {
        let mut seen = server.seen.lock().unwrap();
        seen.under_way += 1;
        seen.most_under_way = seen.most_under_way.max(seen.under_way);
        seen.bodies.push(body.clone());
        match body["prompt"].as_array() {
            Some(ids) => {
                let first = Value::from(ids[..ids.len().min(32)].to_vec());
                (ids.len(), if seen.prefixes.insert(first) { 0 } else { 32.min(ids.len()) })
            }
            None => {
                let text =
                    body["prompt"].as_str().or(body["messages"][0]["content"].as_str()).unwrap_or_default();
                // Three tokens for every two words.
                (text.split_whitespace().count() * 3 / 2, 0)
            }
        }
    };
    let refuse = |status: StatusCode, message: &str| {
        server.seen.lock().unwrap().under_way -= 1;
        (status, Json(json!({"error": {"message": message}}))).into_response()
    };
    match seed {
        1 => return refuse(StatusCode::TOO_MANY_REQUESTS, "busy"),
        2 => return refuse(StatusCode::BAD_REQUEST, "the prompt is too long"),
        _ => {}
    }
    let (sender, receiver) = mpsc::unbounded_channel::<Result<Bytes, Infallible>>();
    let want_usage = manners.usage && body["stream_options"]["include_usage"] == true;
    let seen = Arc::clone(&server.seen);
    tokio::spawn(async move {
        let event = |value: Value| Ok(Bytes::from(format!("data: {value}\n\n")));
        sleep(manners.first).await;
        for token in 0..tokens {
            if token > 0 {
                sleep(manners.next).await;
            }
            let choice = match is_chat {
                true => json!({"index": 0, "delta": {"content": " x"}, "finish_reason": null}),
                false => json!({"index": 0, "text": " x", "finish_reason": null}),
            };
            match (seed, token) {
                (3, 2) => {
                    seen.lock().unwrap().under_way -= 1;
                    return;
                }
                (4, 2) => sleep(Duration::from_secs(60)).await,
                (5, 2) => drop(sender.send(Ok(Bytes::from("data: {nonsense\n\n")))),
                (6, 2) => drop(sender.send(event(json!({"error": {"message": "out of memory"}})))),
                _ => {}
            }
            if sender.send(event(json!({"choices": [choice]}))).is_err() {
                break;
            }
        }
        let finish = json!({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": "length"}]});
        let _ = sender.send(event(finish));
        if want_usage {
            let usage = json!({
                "prompt_tokens": prompt_tokens, "completion_tokens": tokens,
                "prompt_tokens_details": {"cached_tokens": cached},
            });
            let _ = sender.send(event(json!({"choices": [], "usage": usage})));
        }
        let _ = sender.send(Ok(Bytes::from("data: [DONE]\n\n")));
        seen.lock().unwrap().under_way -= 1;
    });
    let stream = Events { receiver, broken: seed == 3 };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::new(stream)).into_response()
}

/// What is sent, ended by an error when the connection is cut.
struct Events {
    receiver: mpsc::UnboundedReceiver<Result<Bytes, Infallible>>,
    broken: bool,
}

impl axum::body::HttpBody for Events {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        use std::task::Poll;
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(Ok(bytes))) => Poll::Ready(Some(Ok(hyper::body::Frame::data(bytes)))),
            Poll::Ready(Some(Err(never))) => match never {},
            Poll::Ready(None) if self.broken => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
