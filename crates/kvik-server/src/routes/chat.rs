//! `/v1/chat/completions`: a conversation is continued by one message, or by several to choose from.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};

use super::{Received, json, receive};
use crate::{
    app::{App, unix_seconds},
    error::{ApiError, ErrorBody},
    generation::{
        Job, Running,
        answer::{AnswerParser, Piece, Whole, whole},
        format, params, prompt,
        tool_use::ToolUse,
    },
    sse::{self, EventSource, Events},
    wire::chat::{
        AnswerMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatRequest,
        ChatResponse,
    },
};

/// Continue a conversation
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "generate", request_body = crate::openapi::ChatBody,
    responses(
        (status = 200, description = "The answer; a stream of ChatChunk if `stream` is true", body = ChatResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let Received { own, fields, admission, memory } = receive::<ChatRequest>(&app, request).await?;
    let (job, head) = app.prepare(memory, move |app| prepared(app, own, fields)).await?;
    let (stream, include_usage) = (job.params.stream, job.params.include_usage);
    let mut running = job.submit(&app, admission)?;
    let parsers = (0..running.answers()).map(|_| AnswerParser::new(&app, &head.tools)).collect();
    if stream {
        let answers = Answers { head, running, parsers, include_usage, begun: false };
        return Ok(sse::response(answers, app.metrics.panics()));
    }
    let wholes = whole(&mut running, parsers).await?;
    let choices = wholes.into_iter().enumerate().map(|(index, whole)| choice(index, whole, head.logprobs));
    Ok(json(&ChatResponse {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices: choices.collect(),
        usage: running.usage(),
    }))
}

/// What all pieces of an answer have in common.
pub struct Head {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    tools: ToolUse,
}

fn prepared(
    app: &App,
    own: ChatRequest,
    fields: crate::wire::generation::GenerationFields,
) -> Result<(Job, Head), ApiError> {
    let params = params::Params::new(app, fields)?;
    let asked = own.logprobs.unwrap_or(false);
    let top = params::top_logprobs("top_logprobs", own.top_logprobs.unwrap_or(0))?;
    if top > 0 && !asked {
        let message = "top_logprobs needs logprobs to be true: set it, or leave top_logprobs out";
        return Err(ApiError::invalid(message).param("top_logprobs"));
    }
    let tools = ToolUse::new(app, own.tools.unwrap_or_default(), own.tool_choice, own.parallel_tool_calls)?;
    let variables = own.chat_template_kwargs.unwrap_or_default();
    let prompts = vec![prompt::conversation(app, &own.messages, &tools, variables)?];
    let constraint = format::constraint(app, params.format.as_ref(), &tools)?;
    let head = Head {
        id: app.id("chatcmpl-"),
        created: unix_seconds(),
        model: app.config.model_name.clone(),
        logprobs: asked,
        tools,
    };
    Ok((Job { prompts, params, logprobs: asked.then_some(top), field: "messages", constraint }, head))
}

fn choice(index: usize, whole: Whole, logprobs: bool) -> ChatChoice {
    let silent = whole.text.is_empty() && !whole.calls.is_empty();
    ChatChoice {
        index,
        message: AnswerMessage {
            role: "assistant",
            content: (!silent).then_some(whole.text),
            refusal: None,
            tool_calls: whole.calls,
        },
        logprobs: logprobs.then_some(whole.logprobs),
        finish_reason: whole.finish,
    }
}

/// Answers as they come.
struct Answers {
    head: Head,
    running: Running,
    parsers: Vec<AnswerParser>,
    include_usage: bool,
    begun: bool,
}

impl Answers {
    fn chunk(&self, choices: Vec<ChatChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: None,
        }
    }

    fn write(&self, index: usize, piece: Piece, events: &mut Events) {
        let logprobs = ChatLogprobs { content: piece.logprobs };
        let delta = ChatDelta {
            role: None,
            content: Some(piece.text).filter(|text| !text.is_empty()),
            tool_calls: piece.calls,
        };
        let logprobs = self.head.logprobs.then_some(logprobs).filter(|logprobs| !logprobs.content.is_empty());
        let news = delta.content.is_some() || !delta.tool_calls.is_empty() || logprobs.is_some();
        let choice =
            |delta, logprobs, finish_reason| ChatChunkChoice { index, delta, logprobs, finish_reason };
        if news {
            events.data(&self.chunk(vec![choice(delta, logprobs, None)]));
        }
        if piece.finish.is_some() {
            events.data(&self.chunk(vec![choice(ChatDelta::default(), None, piece.finish)]));
        }
    }
}

impl EventSource for Answers {
    async fn next(&mut self, events: &mut Events) -> bool {
        if !self.begun {
            self.begun = true;
            for index in 0..self.parsers.len() {
                let delta = ChatDelta {
                    role: Some("assistant"),
                    content: Some(String::new()),
                    ..ChatDelta::default()
                };
                let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None };
                events.data(&self.chunk(vec![choice]));
            }
            return true;
        }
        match self.running.next().await {
            Some(Ok((index, update))) => {
                if let Some(parser) = self.parsers.get_mut(index) {
                    let piece = parser.piece(update);
                    self.write(index, piece, events);
                }
                true
            }
            Some(Err(error)) => {
                events.data(&error.body());
                events.done();
                false
            }
            None => {
                if self.include_usage {
                    events.data(&ChatChunk { usage: Some(self.running.usage()), ..self.chunk(Vec::new()) });
                }
                events.done();
                false
            }
        }
    }
}
