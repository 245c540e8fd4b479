//! A server over HTTP: asking for a completion and reading its stream.
//!
//! It works with every server that streams `/v1/completions` or `/v1/chat/completions`, llama.cpp's and vLLM among them. Tokens
//! are counted from the usage that comes at the end of a stream, or, without one, from the pieces.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Ask, CallError, Endpoint, Exchange, Outcome, Sample, SseParser, Target};
use crate::trace::prompts::Prompt;

/// For questions that are answered at once.
const SHORT: Duration = Duration::from_secs(60);
/// How long a page of counters may take; a server that is that busy is asked again.
const COUNTERS: Duration = Duration::from_secs(5);

/// Which part of the API to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`, which takes text and tokens.
    #[default]
    Completions,
    /// `/v1/chat/completions`, which takes text.
    Chat,
}

/// A server, and how to ask it.
#[derive(Clone, Debug)]
pub struct HttpTarget {
    /// The server.
    pub endpoint: Endpoint,
    /// Which part of its API.
    pub api: Api,
    /// The model to name.
    pub model: String,
    /// Whether to send fields that OpenAI's own API does not have, so that answers are as long as asked for.
    pub extensions: bool,
    /// What else to send.
    pub fields: Map<String, Value>,
    /// How long an answer may take.
    pub limit: Duration,
}

/// A request as it is sent.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    path: &'static str,
    body: Bytes,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
    /// llama.cpp's own counts.
    #[serde(default)]
    timings: Option<Timings>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Timings {
    #[serde(default)]
    cache_n: u64,
    #[serde(default)]
    prompt_n: u64,
    #[serde(default)]
    predicted_n: u64,
}

impl Choice {
    fn has_text(&self) -> bool {
        let texts = [
            self.text.as_deref(),
            self.delta.as_ref().and_then(|delta| delta.content.as_deref()),
            self.delta.as_ref().and_then(|delta| delta.reasoning_content.as_deref()),
        ];
        texts.into_iter().flatten().any(|text| !text.is_empty())
    }
}

impl Target for HttpTarget {
    type Request = HttpRequest;

    fn name(&self) -> String {
        self.endpoint.to_string()
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    /// A chat takes text only; tokens are sent to `/v1/completions` whatever [`api`](Self::api) says.
    fn ask(&self, prompt: &Prompt, tokens: u64, seed: u64) -> Ask<HttpRequest> {
        let mut body = Map::new();
        body.insert("model".into(), self.model.clone().into());
        let path = match (prompt, self.api) {
            (Prompt::Text(text), Api::Chat) => {
                body.insert("messages".into(), json!([{"role": "user", "content": text}]));
                "/v1/chat/completions"
            }
            (Prompt::Text(text), Api::Completions) => {
                body.insert("prompt".into(), text.clone().into());
                "/v1/completions"
            }
            (Prompt::Tokens(tokens), _) => {
                body.insert("prompt".into(), tokens.clone().into());
                "/v1/completions"
            }
        };
        body.insert("max_tokens".into(), tokens.into());
        body.insert("temperature".into(), 0.into());
        body.insert("seed".into(), seed.into());
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        if self.extensions {
            body.insert("ignore_eos".into(), true.into());
            body.insert("min_tokens".into(), tokens.into());
        }
        body.extend(self.fields.clone());
        let request = HttpRequest { path, body: Value::Object(body).to_string().into() };
        Ask { request, wanted_tokens: tokens }
    }

    async fn answer(&self, request: HttpRequest, began: Instant, exchange: &mut Exchange) -> Outcome {
        let response = match self.endpoint.send(request.path, Some(request.body)).await {
            Ok(response) => response,
            Err(CallError::Unreachable { source, .. }) => {
                return Outcome::Unreachable { message: source.to_string() };
            }
            Err(_) => return Outcome::Disconnected,
        };
        let status = response.status().as_u16();
        match status {
            200 => {}
            429 | 503 => return Outcome::Overloaded { status },
            _ => return Outcome::Refused { status, message: self.endpoint.complaint(response).await },
        }
        let mut body = response.into_body();
        let mut stream = Stream::default();
        let mut parser = SseParser::default();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            let Some(bytes) = frame.data_ref() else { continue };
            let at = began.elapsed().as_secs_f64();
            let fed = parser.feed(bytes, |event| stream.event(event, at, exchange));
            if let Err(error) = fed {
                return Outcome::Malformed { message: error.to_string() };
            }
            if let Some(outcome) = stream.failed.take() {
                return outcome;
            }
            if stream.done {
                break;
            }
        }
        stream.settle(exchange)
    }

    async fn sample(&self, began: Instant) -> Option<Sample> {
        let page = self.endpoint.call("/metrics", None, COUNTERS).await.ok()?;
        Sample::of_page(&String::from_utf8_lossy(&page), began.elapsed().as_secs_f64())
    }
}

impl HttpTarget {
    /// The name of the server's first model.
    ///
    /// # Errors
    /// The server does not answer, or not with a list of models.
    pub async fn first_model(endpoint: &Endpoint) -> Result<String, CallError> {
        let path = "/v1/models";
        let list = endpoint.call(path, None, SHORT).await?;
        let list: Value = serde_json::from_slice(&list).unwrap_or_default();
        let unexpected = CallError::Unexpected { path: path.to_owned(), wanted: "a list of models" };
        list["data"][0]["id"].as_str().map(str::to_owned).ok_or(unexpected)
    }

    /// The tokens of `text`, where the server lends its tokenizer.
    ///
    /// # Errors
    /// It does not.
    pub async fn tokenize(&self, text: &str) -> Result<Vec<u32>, CallError> {
        let path = "/tokenize";
        // Kvik and llama.cpp know the first form, vLLM the second.
        let forms = [
            json!({"content": text, "add_special": false}),
            json!({"model": self.model, "prompt": text, "add_special_tokens": false}),
        ];
        let mut answer = self.endpoint.call(path, Some(forms[0].to_string().into()), SHORT).await;
        if matches!(answer, Err(CallError::Status { status, .. }) if status.is_client_error()) {
            answer = self.endpoint.call(path, Some(forms[1].to_string().into()), SHORT).await;
        }
        let unexpected = || CallError::Unexpected { path: path.to_owned(), wanted: "a list of tokens" };
        let answer: Value = serde_json::from_slice(&answer?).map_err(|_| unexpected())?;
        let tokens = answer["tokens"].as_array().ok_or_else(unexpected)?;
        let id = |token: &Value| {
            token.as_u64().or_else(|| token["id"].as_u64()).and_then(|id| u32::try_from(id).ok())
        };
        tokens.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(unexpected)
    }
}

/// What was seen of a stream.
#[derive(Default)]
struct Stream {
    pieces: u64,
    finished: bool,
    done: bool,
    usage: Option<Usage>,
    timings: Option<Timings>,
    failed: Option<Outcome>,
}

impl Stream {
    fn event(&mut self, event: &str, at: f64, exchange: &mut Exchange) {
        if event.trim() == "[DONE]" {
            self.done = true;
            return;
        }
        let chunk: Chunk = match serde_json::from_str(event) {
            Ok(chunk) => chunk,
            Err(error) => {
                let beginning: String = event.chars().take(60).collect();
                let message = format!("an event is no chunk of a completion ({error}): {beginning}");
                self.failed = Some(Outcome::Malformed { message });
                return;
            }
        };
        if let Some(error) = chunk.error {
            let message = error.get("message").unwrap_or(&error);
            let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            self.failed = Some(Outcome::Refused { status: 200, message });
            return;
        }
        if chunk.choices.iter().any(Choice::has_text) {
            self.pieces += 1;
            exchange.piece(at);
        }
        self.finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        self.usage = chunk.usage.or(self.usage.take());
        self.timings = chunk.timings.or(self.timings.take());
    }

    /// Counts tokens, and says how the stream ended.
    fn settle(self, exchange: &mut Exchange) -> Outcome {
        exchange.completion_tokens = self.pieces;
        if let Some(timings) = self.timings {
            exchange.completion_tokens = timings.predicted_n.max(self.pieces);
            exchange.cached_tokens = timings.cache_n;
            exchange.prompt_tokens = timings.cache_n + timings.prompt_n;
        }
        if let Some(usage) = self.usage {
            exchange.completion_tokens = usage.completion_tokens;
            exchange.prompt_tokens = usage.prompt_tokens;
            let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
            exchange.cached_tokens = cached.unwrap_or(exchange.cached_tokens);
        }
        match (self.done || self.finished, self.pieces > 0 || self.finished) {
            (true, true) => Outcome::Complete,
            (true, false) => Outcome::Malformed { message: "the stream ended without a token".to_owned() },
            (false, _) => Outcome::Disconnected,
        }
    }
}
