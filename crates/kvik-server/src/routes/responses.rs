//! `/v1/responses`, for text: a conversation is continued by one message.
//!
//! Answers are not kept, so that a request brings the whole conversation; functions are for `/v1/chat/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Received, json, receive};
use crate::{
    app::{App, unix_seconds},
    error::{ApiError, ErrorBody},
    generation::{
        Job, Running,
        answer::{AnswerParser, whole},
        format, params, prompt,
        tool_use::ToolUse,
    },
    sse::{self, EventSource, Events},
    wire::{
        Usage,
        chat::{ChatMessage, Content},
        generation::GenerationFields,
        response::{
            IncompleteDetails, InputTokensDetails, OutputMessage, OutputText, OutputTokensDetails,
            ResponsesError, ResponsesInput, ResponsesItem, ResponsesRequest, ResponsesResponse,
            ResponsesUsage,
        },
    },
};

/// Continue a conversation, in the newer of OpenAI's two shapes
#[utoipa::path(
    post, path = "/v1/responses", tag = "generate", request_body = crate::openapi::ResponsesBody,
    responses(
        (status = 200, description = "The answer; a stream of events if `stream` is true", body = ResponsesResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn respond(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let Received { own, fields, admission, memory } = receive::<ResponsesRequest>(&app, request).await?;
    let (job, mut head) = app.prepare(memory, move |app| prepared(app, own, fields)).await?;
    let stream = job.params.stream;
    let mut running = job.submit(&app, admission)?;
    let parser = AnswerParser::new(&app, &ToolUse::none());
    if stream {
        let text = String::new();
        let answer = Answer { head, running, parser, text, sequence: 0, begun: false };
        return Ok(sse::response(answer, app.metrics.panics()));
    }
    let whole = whole(&mut running, vec![parser]).await?.into_iter().next().unwrap_or_default();
    head.end(&whole.text, whole.finish, running.usage());
    Ok(json(&head))
}

fn prepared(
    app: &App,
    own: ResponsesRequest,
    mut fields: GenerationFields,
) -> Result<(Job, ResponsesResponse), ApiError> {
    let refuse = |field: &str, message: &str| Err(ApiError::invalid(message).param(field));
    if own.tools.is_some_and(|tools| !tools.is_empty()) {
        return refuse("tools", "tools are not for /v1/responses: use /v1/chat/completions");
    }
    if own.previous_response_id.is_some() {
        return refuse("previous_response_id", "answers are not kept: send the whole conversation as input");
    }
    fields.n = None;
    fields.max_tokens = own.max_output_tokens.or(fields.max_tokens);
    let form = own.text.and_then(|text| text.format).map(Into::into);
    fields.response_format = form.or(fields.response_format);
    let params = params::Params::new(app, fields)?;
    let messages = conversation(own.instructions.as_deref(), own.input)?;
    let prompts = vec![prompt::conversation(app, &messages, &ToolUse::none(), Map::new())?];
    let constraint = format::constraint(app, params.format.as_ref(), &ToolUse::none())?;
    let head = ResponsesResponse {
        id: app.id("resp_"),
        object: "response",
        created_at: unix_seconds(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: own.instructions,
        max_output_tokens: params.max_tokens,
        model: app.config.model_name.clone(),
        output: Vec::new(),
        parallel_tool_calls: false,
        temperature: params.sampling.temperature,
        top_p: params.sampling.top_p,
        tool_choice: "none",
        tools: Vec::new(),
        store: false,
        metadata: own.metadata.unwrap_or_default(),
        usage: None,
    };
    Ok((Job { prompts, params, logprobs: None, field: "input", constraint }, head))
}

/// The messages that instructions and input are.
fn conversation(instructions: Option<&str>, input: ResponsesInput) -> Result<Vec<ChatMessage>, ApiError> {
    let message = |role: &str, content: Content| ChatMessage {
        role: role.to_owned(),
        content: Some(content),
        name: None,
        tool_calls: None,
        tool_call_id: None,
    };
    let mut messages: Vec<ChatMessage> =
        instructions.iter().map(|text| message("system", Content::Text((*text).to_owned()))).collect();
    match input {
        ResponsesInput::Text(text) => messages.push(message("user", Content::Text(text))),
        ResponsesInput::Items(items) => {
            for (index, ResponsesItem { kind, role, content }) in items.into_iter().enumerate() {
                let kind = kind.as_deref().unwrap_or("message");
                let (Some(role), Some(content), "message") = (role, content, kind) else {
                    let message = format!("input[{index}] is no message: give it a role and content");
                    return Err(ApiError::invalid(message).param(format!("input[{index}]")));
                };
                messages.push(message(&role, content));
            }
        }
    }
    Ok(messages)
}

impl ResponsesResponse {
    fn message(&self, text: Option<&str>, status: &'static str) -> OutputMessage {
        OutputMessage {
            kind: "message",
            id: self.id.replacen("resp_", "msg_", 1),
            status,
            role: "assistant",
            content: text.map(part).into_iter().collect(),
        }
    }

    /// The answer has ended.
    fn end(&mut self, text: &str, finish: Option<&'static str>, usage: Usage) {
        let complete = finish == Some("stop");
        self.status = if complete { "completed" } else { "incomplete" };
        self.incomplete_details = (!complete).then_some(IncompleteDetails { reason: "max_output_tokens" });
        self.output = vec![self.message(Some(text), self.status)];
        self.usage = Some(ResponsesUsage {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.prompt_tokens_details.cached_tokens,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: usage.total_tokens,
        });
    }
}

fn part(text: &str) -> OutputText {
    OutputText { kind: "output_text", text: text.to_owned(), annotations: Vec::new(), logprobs: Vec::new() }
}

/// An answer as it comes.
struct Answer {
    head: ResponsesResponse,
    running: Running,
    parser: AnswerParser,
    text: String,
    sequence: u64,
    begun: bool,
}

/// An event: its kind, its number, and what is said with it.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    said: Value,
}

impl Answer {
    fn event(&mut self, kind: &str, said: Value, events: &mut Events) {
        events.named(kind, &Event { kind, sequence_number: self.sequence, said });
        self.sequence += 1;
    }

    fn begin(&mut self, events: &mut Events) {
        for kind in ["response.created", "response.in_progress"] {
            self.event(kind, json!({"response": self.head}), events);
        }
        let item = self.head.message(None, "in_progress");
        self.event("response.output_item.added", json!({"output_index": 0, "item": item}), events);
        let said = self.at(json!({"part": part("")}));
        self.event("response.content_part.added", said, events);
    }

    fn end(&mut self, finish: Option<&'static str>, events: &mut Events) {
        let text = std::mem::take(&mut self.text);
        self.head.end(&text, finish, self.running.usage());
        let said = self.at(json!({"text": text, "logprobs": []}));
        self.event("response.output_text.done", said, events);
        let said = self.at(json!({"part": part(&text)}));
        self.event("response.content_part.done", said, events);
        let said = json!({"output_index": 0, "item": self.head.output.first()});
        self.event("response.output_item.done", said, events);
        let kind = format!("response.{}", self.head.status);
        self.event(&kind, json!({"response": self.head}), events);
    }

    /// `said`, and of which part of which message.
    fn at(&self, mut said: Value) -> Value {
        said["item_id"] = json!(self.head.message(None, "").id);
        said["output_index"] = json!(0);
        said["content_index"] = json!(0);
        said
    }
}

impl EventSource for Answer {
    async fn next(&mut self, events: &mut Events) -> bool {
        if !self.begun {
            self.begun = true;
            self.begin(events);
            return true;
        }
        match self.running.next().await {
            Some(Ok((_, update))) => {
                let piece = self.parser.piece(update);
                if !piece.text.is_empty() {
                    self.text.push_str(&piece.text);
                    let said = self.at(json!({"delta": piece.text, "logprobs": []}));
                    self.event("response.output_text.delta", said, events);
                }
                if piece.finish.is_some() {
                    self.end(piece.finish, events);
                }
                true
            }
            Some(Err(error)) => {
                self.head.status = "failed";
                self.head.error = Some(ResponsesError { code: "server_error", message: error.message });
                self.event("response.failed", json!({"response": self.head}), events);
                false
            }
            None => false,
        }
    }
}
