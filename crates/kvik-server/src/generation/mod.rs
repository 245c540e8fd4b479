//! From a checked request to its answers.
//!
//! [`Job`] says what is wanted: prompts, and how to generate. [`Running`] is what became of it in the service: one
//! reply for each answer, read as one stream of updates with the index of the answer. On its way it counts tokens for
//! the key's limits and for the metrics. Dropping it cancels all of it.

pub mod answer;
pub mod format;
pub mod logprobs;
pub mod params;
pub mod prompt;
pub mod tool_use;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, stream};
use kvik_engine::{
    Constraint, Reply, Request, RequestError, StopReason, SubmitError, Update, sampling::TokenMask,
};

use crate::{app::App, error::ApiError, limits::Admission, wire::Usage};

use params::Params;

/// What is wanted.
pub struct Job {
    /// What to continue.
    pub prompts: Vec<Vec<u32>>,
    /// How.
    pub params: Params,
    /// Report log-probabilities, and of this many other tokens.
    pub logprobs: Option<usize>,
    /// The field of the request that the prompts come from.
    pub field: &'static str,
    /// What the answer must look like.
    pub constraint: Option<Constraint>,
}

type Updates = stream::SelectAll<Pin<Box<dyn Stream<Item = (usize, Update)> + Send>>>;

/// Answers that are on their way.
pub struct Running {
    app: Arc<App>,
    admission: Admission,
    updates: Updates,
    answers: Vec<Progress>,
    /// Answers to each prompt.
    n: usize,
    prompt_tokens: usize,
    started: Instant,
    open: usize,
    /// The request's, for the log: its answer may end long after the head of the answer was sent.
    span: tracing::Span,
}

/// Answers of one request that may have a constraint: each takes up to tens of megabytes for it.
const MOST_CONSTRAINED: usize = 8;

/// What one answer has come to.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    cached_tokens: usize,
    completion_tokens: usize,
    last_token: Option<Instant>,
    ended: bool,
}

impl Job {
    /// Hands the job to the service.
    ///
    /// # Errors
    /// 400 if it does not fit, 429 if there is too much to do, 503 if the server is about to end.
    pub fn submit(self, app: &Arc<App>, admission: Admission) -> Result<Running, ApiError> {
        let Job { prompts, params, logprobs, field, constraint } = self;
        let answers = prompts.len().saturating_mul(params.n);
        let most = app.config.max_choices;
        if answers > most {
            let message = format!(
                "{} prompts with n = {} are {answers} answers: this server gives at most {most} to one request",
                prompts.len(),
                params.n
            );
            return Err(ApiError::invalid(message).param("n"));
        }
        if constraint.is_some() && answers > MOST_CONSTRAINED {
            let message = format!(
                "{answers} answers in a form of their own: ask for at most {MOST_CONSTRAINED}, for each has an automaton to itself"
            );
            return Err(ApiError::invalid(message).param("n"));
        }
        let caller = admission.caller();
        let prompt_tokens = prompts.iter().map(Vec::len).sum();
        let deadline = app.config.request_timeout.map(|time| Instant::now() + time);
        let mut updates = Updates::new();
        for (index, prompt) in
            prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, params.n)).enumerate()
        {
            let mut sampling = params.sampling.clone();
            let of_prompt = (index % params.n) as u64;
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(of_prompt));
            let request = Request {
                prompt: prompt.clone(),
                pipeline: params.pipeline.clone(),
                max_tokens: params.max_tokens,
                min_tokens: params.min_tokens,
                sampling,
                frequency_penalty: params.frequency_penalty,
                presence_penalty: params.presence_penalty,
                logit_bias: params.logit_bias.clone(),
                stop: params.stop.clone(),
                logprobs,
                ignore_end_of_text: params.ignore_end_of_text,
                constraint: constraint.clone().map(|constraint| Box::new(constraint) as Box<dyn TokenMask>),
                priority: caller.priority.saturating_add(params.priority.min(0)),
                owner: caller.name.clone(),
                deadline,
                want_hidden: false,
            };
            let reply = app.service.submit(request).map_err(|error| refused(error, field))?;
            updates.push(Box::pin(numbered(index, reply)));
        }
        admission.charge(prompt_tokens);
        Ok(Running {
            app: Arc::clone(app),
            started: admission.arrived(),
            admission,
            updates,
            answers: vec![Progress::default(); answers],
            n: params.n,
            prompt_tokens,
            open: answers,
            span: tracing::Span::current(),
        })
    }
}

fn numbered(index: usize, reply: Reply) -> impl Stream<Item = (usize, Update)> + Send {
    stream::unfold(reply, move |mut reply| async move {
        let update = reply.next().await?;
        Some(((index, update), reply))
    })
}

impl Running {
    /// The next update and the answer that it belongs to; `None` when all answers have ended.
    ///
    /// # Errors
    /// An answer failed; the others are given up.
    pub async fn next(&mut self) -> Option<Result<(usize, Update), ApiError>> {
        if self.open == 0 {
            return None;
        }
        let Some((index, update)) = self.updates.next().await else {
            self.open = 0;
            let message = "the service ended before the answer did; try again when the server is back";
            return Some(Err(ApiError::internal(message)));
        };
        let now = Instant::now();
        let progress = self.answers.get_mut(index)?;
        match &update {
            Update::Started { prefix_tokens } => progress.cached_tokens = *prefix_tokens,
            Update::Token { .. } => {
                progress.completion_tokens += 1;
                match progress.last_token {
                    None => self.app.metrics.first_token(now - self.started),
                    Some(last) => self.app.metrics.next_token(now - last),
                }
                progress.last_token = Some(now);
                self.app.metrics.completion(1);
                self.admission.charge(1);
            }
            Update::Finished { usage, .. } => {
                progress.cached_tokens = usage.cached_tokens;
                progress.completion_tokens = usage.completion_tokens;
                progress.ended = true;
                self.open -= 1;
                self.app.metrics.answer(now - self.started);
                self.app.metrics.prompt(usage.prompt_tokens, usage.cached_tokens);
            }
            Update::Embedding(_) | Update::Tail(_) => {}
            Update::Failed(error) => {
                self.open = 0;
                return Some(Err(failed(error)));
            }
        }
        Some(Ok((index, update)))
    }

    /// How many answers there are.
    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// What it took so far. A prompt counts once however many answers it has.
    pub fn usage(&self) -> Usage {
        let cached = self.answers.chunks(self.n).filter_map(|answers| answers.first());
        let cached = cached.map(|answer| answer.cached_tokens).sum();
        let completion = self.answers.iter().map(|answer| answer.completion_tokens).sum();
        Usage::new(self.prompt_tokens, cached, completion)
    }
}

/// The request leaves a line in the log, however it ended.
impl Drop for Running {
    fn drop(&mut self) {
        let usage = self.usage();
        let ended = self.answers.iter().filter(|answer| answer.ended).count();
        let _entered = self.span.enter();
        tracing::info!(
            key = self.admission.caller().name.as_deref().unwrap_or_default(),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.prompt_tokens_details.cached_tokens,
            completion_tokens = usage.completion_tokens,
            answers = self.answers.len(),
            ended,
            seconds = self.started.elapsed().as_secs_f64(),
            "generated"
        );
    }
}

/// What a request's sender is told when the service does not take it.
pub fn refused(error: SubmitError, field: &str) -> ApiError {
    match error {
        SubmitError::Overloaded { retry_after } => {
            let message = "the server has as many requests waiting as it may: try again later";
            ApiError::overloaded(message, retry_after.max(Duration::from_secs(1)))
        }
        SubmitError::Draining => ApiError::draining(),
        error @ (SubmitError::TooLong { .. } | SubmitError::TooLarge { .. }) => {
            ApiError::invalid(error.to_string()).param(field).code("context_length_exceeded")
        }
        error @ SubmitError::Unhealthy(_) => ApiError::internal(error.to_string()),
        error @ SubmitError::Invalid(_) => ApiError::invalid(error.to_string()),
    }
}

/// What a request's sender is told when the service cannot finish what it took.
pub fn failed(error: &RequestError) -> ApiError {
    match error {
        RequestError::Deadline => ApiError::overloaded(error.to_string(), Duration::from_secs(5)),
        RequestError::Stopped => ApiError { message: error.to_string(), ..ApiError::draining() },
        RequestError::OutOfMemory { .. } => {
            ApiError::invalid(error.to_string()).code("context_length_exceeded")
        }
        RequestError::Engine(_) | RequestError::Internal(_) => {
            tracing::error!(%error, "a request failed");
            ApiError::internal(error.to_string())
        }
    }
}

/// Why an answer ended, in OpenAI's words.
pub fn finish_reason(reason: &StopReason) -> &'static str {
    match reason {
        StopReason::EndOfText | StopReason::StopString(_) => "stop",
        // The server's limits of time are limits of length to those who speak OpenAI's language.
        _ => "length",
    }
}
