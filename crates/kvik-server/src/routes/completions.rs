//! `/v1/completions`: texts are continued.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use kvik_engine::Update;
use kvik_model::Tokenizer;

use super::{Received, json, receive};
use crate::{
    app::{App, unix_seconds},
    error::{ApiError, ErrorBody},
    generation::{Job, Running, finish_reason, format, logprobs, params, prompt, tool_use::ToolUse},
    sse::{self, EventSource, Events},
    wire::{
        Usage,
        completion::{CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, Prompt},
        generation::GenerationFields,
    },
};

/// Tokens of an answer if the request does not say: OpenAI's default.
const DEFAULT_TOKENS: usize = 16;

/// Continue a text
#[utoipa::path(
    post, path = "/v1/completions", tag = "generate", request_body = crate::openapi::CompletionBody,
    responses(
        (status = 200, description = "The answer; a stream of such objects if `stream` is true", body = CompletionResponse),
        (status = "4XX", description = "What is wrong with the request", body = ErrorBody),
    ),
)]
pub async fn complete(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let Received { own, fields, admission, memory } = receive::<CompletionRequest>(&app, request).await?;
    let (job, head, texts) = app.prepare(memory, move |app| prepared(app, own, fields)).await?;
    let (stream, include_usage) = (job.params.stream, job.params.include_usage);
    let mut running = job.submit(&app, admission)?;
    let texts: Vec<Text> = texts.into_iter().map(Text::new).collect();
    if stream {
        let panics = app.metrics.panics();
        let answers = Answers { app, head, running, texts, include_usage, begun: false };
        return Ok(sse::response(answers, panics));
    }
    let mut choices: Vec<CompletionChoice> =
        (0..texts.len()).map(|index| choice(index, head.logprobs)).collect();
    let mut texts = texts;
    for (choice, text) in choices.iter_mut().zip(&mut texts) {
        choice.text = std::mem::take(&mut text.echo);
    }
    while let Some(update) = running.next().await {
        let (index, update) = update?;
        let (Some(text), Some(choice)) = (texts.get_mut(index), choices.get_mut(index)) else { continue };
        let piece = text.piece(app.tokenizer()?, update);
        choice.text.push_str(&piece.text);
        choice.finish_reason = piece.finish_reason.or(choice.finish_reason);
        if let (Some(all), Some(more)) = (&mut choice.logprobs, piece.logprobs) {
            all.tokens.extend(more.tokens);
            all.token_logprobs.extend(more.token_logprobs);
            all.top_logprobs.extend(more.top_logprobs);
            all.text_offset.extend(more.text_offset);
        }
    }
    Ok(json(&head.response(choices, Some(running.usage()))))
}

/// What all pieces of an answer have in common.
struct Head {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
}

impl Head {
    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }
}

/// The job, and the text that each answer begins with.
fn prepared(
    app: &App,
    own: CompletionRequest,
    fields: GenerationFields,
) -> Result<(Job, Head, Vec<String>), ApiError> {
    let mut params = params::Params::new(app, fields)?;
    params.max_tokens = params.max_tokens.or(Some(DEFAULT_TOKENS.max(params.min_tokens)));
    let refuse = |field: &str, message: &str| Err(ApiError::invalid(message).param(field));
    if own.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return refuse("suffix", "suffix is not supported: this server continues texts, leave it out");
    }
    if own.best_of.is_some_and(|best_of| best_of != params.n) {
        return refuse("best_of", "best_of is not supported: ask for n answers and choose among them");
    }
    let top = own.logprobs.map(|top| params::top_logprobs("logprobs", top)).transpose()?;
    let echo = own.echo.unwrap_or(false);
    if echo && top.is_some() {
        return refuse("echo", "echo with logprobs is not supported: leave one of them out");
    }
    let Some(prompt) = own.prompt else {
        return refuse("prompt", "prompt is missing: give the text that is to be continued");
    };
    let prompts = prompt::texts(app, prompt.clone(), "prompt")?;
    let echoes: Vec<String> = match (echo, prompt) {
        (false, _) => vec![String::new(); prompts.len()],
        (true, Prompt::Text(text)) => vec![text],
        (true, Prompt::Texts(texts)) => texts,
        (true, _) => {
            let tokenizer = app.tokenizer()?;
            prompts.iter().map(|ids| tokenizer.decode(ids, true)).collect()
        }
    };
    let echoes = echoes.into_iter().flat_map(|echo| std::iter::repeat_n(echo, params.n)).collect();
    let constraint = format::constraint(app, params.format.as_ref(), &ToolUse::none())?;
    let head = Head {
        id: app.id("cmpl-"),
        created: unix_seconds(),
        model: app.config.model_name.clone(),
        logprobs: top.is_some(),
    };
    Ok((Job { prompts, params, logprobs: top, field: "prompt", constraint }, head, echoes))
}

fn choice(index: usize, logprobs: bool) -> CompletionChoice {
    let logprobs = logprobs.then(CompletionLogprobs::default);
    CompletionChoice { text: String::new(), index, logprobs, finish_reason: None }
}

/// One answer.
struct Text {
    echo: String,
    /// Characters that it has so far, those of tokens that are held back included.
    characters: usize,
}

/// What is new of one answer.
struct Piece {
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Text {
    fn new(echo: String) -> Self {
        Self { echo, characters: 0 }
    }

    fn piece(&mut self, tokenizer: &Tokenizer, update: Update) -> Piece {
        match update {
            Update::Token { id, text, logprob } => {
                let logprob = logprob.filter(|_| !tokenizer.is_end_of_generation(id));
                let logprobs = logprob.map(|logprob| {
                    let mut list = CompletionLogprobs::default();
                    logprobs::for_completion(tokenizer, &logprob, self.characters, &mut list);
                    list
                });
                self.characters += tokenizer.token_text(id).chars().count();
                Piece { text, logprobs, finish_reason: None }
            }
            Update::Tail(text) => Piece { text, logprobs: None, finish_reason: None },
            Update::Finished { reason, .. } => {
                Piece { text: String::new(), logprobs: None, finish_reason: Some(finish_reason(&reason)) }
            }
            _ => Piece { text: String::new(), logprobs: None, finish_reason: None },
        }
    }
}

/// Answers as they come.
struct Answers {
    app: Arc<App>,
    head: Head,
    running: Running,
    texts: Vec<Text>,
    include_usage: bool,
    begun: bool,
}

impl Answers {
    fn echoes(&mut self, events: &mut Events) {
        for (index, text) in self.texts.iter_mut().enumerate() {
            let echo = std::mem::take(&mut text.echo);
            if !echo.is_empty() {
                events.data(
                    &self.head.response(vec![CompletionChoice { text: echo, ..choice(index, false) }], None),
                );
            }
        }
    }

    fn write(&mut self, index: usize, update: Update, events: &mut Events) -> Result<(), ApiError> {
        let Some(text) = self.texts.get_mut(index) else { return Ok(()) };
        let piece = text.piece(self.app.tokenizer()?, update);
        if piece.text.is_empty() && piece.logprobs.is_none() && piece.finish_reason.is_none() {
            return Ok(());
        }
        let Piece { text, logprobs, finish_reason } = piece;
        let choice = CompletionChoice { text, index, logprobs, finish_reason };
        events.data(&self.head.response(vec![choice], None));
        Ok(())
    }
}

impl EventSource for Answers {
    async fn next(&mut self, events: &mut Events) -> bool {
        if !self.begun {
            self.begun = true;
            self.echoes(events);
            return true;
        }
        let written = match self.running.next().await {
            Some(Ok((index, update))) => self.write(index, update, events),
            Some(Err(error)) => Err(error),
            None => {
                if self.include_usage {
                    events.data(&self.head.response(Vec::new(), Some(self.running.usage())));
                }
                events.done();
                return false;
            }
        };
        if let Err(error) = &written {
            events.data(&error.body());
            events.done();
        }
        written.is_ok()
    }
}
