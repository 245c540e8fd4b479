//! An engine in this process, asked without a server between: what users of a server would see of the engine alone.
//!
//! Times are those at which this process hears of tokens, so that what HTTP, JSON and sockets cost is the difference to a
//! replay against `kvik serve`. A piece of an answer is a token, also where its text comes only with the next one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvik_engine::{Request, RequestError, SamplingOptions, Service, SubmitError, Update};
use kvik_kv::Pipeline;
use kvik_model::{Tokenizer, tokenizer::EncodeOptions};

use super::{Ask, Exchange, Outcome, Sample, Target};
use crate::trace::prompts::{Material, Prompt};

/// An engine, and how to ask it.
pub struct EngineTarget {
    /// The engine's service.
    pub service: Arc<Service>,
    /// The methods that rewrite the caches of its requests.
    pub pipeline: Pipeline,
    /// Whether answers are as long as asked for, whatever the model says.
    pub whole: bool,
    /// How long an answer may take.
    pub limit: Duration,
}

/// A request for the engine; the error is why there is none.
pub type EngineRequest = Result<Request, String>;

impl Target for EngineTarget {
    type Request = EngineRequest;

    fn name(&self) -> String {
        "the engine itself".to_owned()
    }

    fn model(&self) -> &str {
        &self.service.shared().model_name
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn ask(&self, prompt: &Prompt, tokens: u64, seed: u64) -> Ask<EngineRequest> {
        let ids = match prompt {
            Prompt::Tokens(ids) => Ok(ids.clone()),
            Prompt::Text(text) => self.tokens(text),
        };
        let answer = usize::try_from(tokens).unwrap_or(usize::MAX);
        let request = ids.map(|prompt| Request {
            prompt,
            pipeline: self.pipeline.clone(),
            max_tokens: Some(answer),
            min_tokens: if self.whole { answer } else { 0 },
            ignore_end_of_text: self.whole,
            sampling: SamplingOptions { temperature: 0.0, seed: Some(seed), ..SamplingOptions::default() },
            ..Request::default()
        });
        Ask { request, wanted_tokens: tokens }
    }

    async fn answer(&self, request: EngineRequest, began: Instant, exchange: &mut Exchange) -> Outcome {
        let request = match request {
            Ok(request) => request,
            Err(message) => return Outcome::Refused { status: 400, message },
        };
        let mut reply = match self.service.submit(request) {
            Ok(reply) => reply,
            Err(error) => return turned_away(&error),
        };
        while let Some(update) = reply.next().await {
            match update {
                Update::Token { .. } => {
                    exchange.piece(began.elapsed().as_secs_f64());
                    exchange.completion_tokens += 1;
                }
                Update::Finished { usage, .. } => {
                    exchange.prompt_tokens = usage.prompt_tokens as u64;
                    exchange.cached_tokens = usage.cached_tokens as u64;
                    exchange.completion_tokens = usage.completion_tokens as u64;
                    return Outcome::Complete;
                }
                Update::Failed(RequestError::Stopped) => return Outcome::Disconnected,
                // As within the stream of a server.
                Update::Failed(error) => return Outcome::Refused { status: 200, message: error.to_string() },
                Update::Started { .. } | Update::Tail(_) | Update::Embedding(_) => {}
            }
        }
        Outcome::Disconnected
    }

    async fn sample(&self, began: Instant) -> Option<Sample> {
        let status = self.service.status();
        let (used, budget) = (status.kv.ram_bytes as f64, status.kv.budget_bytes as f64);
        Some(Sample {
            at_s: began.elapsed().as_secs_f64(),
            running: Some(status.running as f64),
            waiting: Some(status.waiting as f64),
            kv_share: (budget > 0.0).then(|| used / budget),
            kv_bytes: Some(used),
            preemptions: Some(status.totals.preemptions as f64),
        })
    }
}

impl EngineTarget {
    /// The tokens of `text`, of which prompts are made; the same as those that `kvik serve` lends by `/tokenize`.
    ///
    /// # Errors
    /// The model's tokenizer cannot be used, or not for this text.
    pub fn material(&self, text: &str) -> Result<Material, String> {
        self.tokens(text).map(Material::Tokens)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokenizer: &Tokenizer =
            self.service.shared().tokenizer.as_ref().map_err(|error| error.to_string())?;
        let options = EncodeOptions { add_special: false, parse_special: true };
        tokenizer.encode(text, options).map_err(|error| error.to_string())
    }
}

/// A request that was not accepted, with the status that Kvik's server would answer.
fn turned_away(error: &SubmitError) -> Outcome {
    let refused = |status| Outcome::Refused { status, message: error.to_string() };
    match error {
        SubmitError::Overloaded { .. } => Outcome::Overloaded { status: 429 },
        SubmitError::Draining => Outcome::Overloaded { status: 503 },
        SubmitError::Unhealthy(_) => refused(500),
        SubmitError::TooLong { .. } | SubmitError::TooLarge { .. } | SubmitError::Invalid(_) => refused(400),
    }
}
