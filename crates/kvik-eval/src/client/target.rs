//! Who answers: what a load needs of whatever is put under it.

use std::time::{Duration, Instant};

use super::{Exchange, Outcome, Sample};
use crate::trace::prompts::Prompt;

/// A request in the making, for one kind of [`Target`].
#[derive(Clone, Debug)]
pub struct Ask<R> {
    /// What the target takes.
    pub request: R,
    /// Tokens of the answer, at most.
    pub wanted_tokens: u64,
}

/// Whoever answers requests for completions: a server somewhere, or an engine in this process. What a load does and what is
/// reported of it do not depend on which.
pub trait Target: Send + Sync + 'static {
    /// A request in its own form, made before it is sent so that making it delays nothing.
    type Request: Send + 'static;

    /// What it is called in reports.
    fn name(&self) -> String;

    /// The model that answers.
    fn model(&self) -> &str;

    /// How long an answer may take.
    fn limit(&self) -> Duration;

    /// The request for an answer of `tokens` tokens to `prompt`, chosen greedily.
    fn ask(&self, prompt: &Prompt, tokens: u64, seed: u64) -> Ask<Self::Request>;

    /// Sends `request`, notes in `exchange` what comes and when, in seconds since `began`, and says how it ended.
    fn answer(
        &self,
        request: Self::Request,
        began: Instant,
        exchange: &mut Exchange,
    ) -> impl Future<Output = Outcome> + Send;

    /// Its own counters at this time; `None` if it does not tell.
    fn sample(&self, began: Instant) -> impl Future<Output = Option<Sample>> + Send;

    /// Sends `ask` and reads the answer, for as long as [`limit`](Self::limit) allows. Times count from `began`; the request
    /// is to be sent at `due_s`.
    fn exchange(
        &self,
        ask: Ask<Self::Request>,
        began: Instant,
        due_s: f64,
    ) -> impl Future<Output = Exchange> + Send {
        async move {
            let now = || began.elapsed().as_secs_f64();
            let mut exchange = Exchange::due(due_s, now(), ask.wanted_tokens);
            let answer = self.answer(ask.request, began, &mut exchange);
            let outcome = tokio::time::timeout(self.limit(), answer).await.unwrap_or(Outcome::Timeout);
            (exchange.end_s, exchange.outcome) = (now(), outcome);
            exchange
        }
    }
}
