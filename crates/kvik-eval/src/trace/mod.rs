//! Traces of real serving traffic: when requests came, how long they were, what they shared.
//!
//! A policy that was tuned on evenly spaced requests of one length is tuned on a world that does not exist. A [`Trace`]
//! is a log of requests without their texts: arrival, tokens in and out, which blocks of the prompt were the same as in
//! other requests, which requests were turns of one conversation, and which failed. It passes through these rooms:
//!
//! - [`read`](Trace::read) knows three published formats by their looks, packed with zstd or not: `mooncake` (R. Qin et
//!   al., "Mooncake: trading more storage for less computation", FAST 2025), `azure` (P. Patel et al., "Splitwise", ISCA
//!   2024) and `log` ([`BurstLog`], Y. Wang et al., "BurstGPT", KDD 2025), which is also written;
//! - `sessions` finds the turns of conversations where a trace does not name them;
//! - `reshape` makes a trace faster, shorter, thinner, or fit for a small model;
//! - [`prompts`] invents texts or tokens that share what the trace says was shared;
//! - [`burstgpt`] fits a model of the workload to a trace and generates new load of any size and rate;
//! - [`facts`] says what a trace is like.

pub mod burstgpt;
pub mod facts;
pub mod prompts;

mod azure;
mod error;
mod log;
mod mooncake;
mod read;
mod reshape;
mod sessions;

use serde::{Deserialize, Serialize};

pub use error::TraceError;
pub use log::{BurstLog, BurstRow};
pub use read::unpacked_text;
pub use reshape::Clipped;

/// A log of requests in the order of their arrival.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The requests, by arrival.
    pub requests: Vec<TraceRequest>,
    /// What [`TraceRequest::class`] counts: which service was asked, and how.
    pub classes: Vec<Class>,
    /// Tokens of a block of [`TraceRequest::blocks`].
    pub block_tokens: usize,
    /// What the arrivals are rounded to, in seconds; 0 when nothing shows that they are.
    pub resolution_s: f64,
    /// Where it comes from.
    pub origin: String,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceRequest {
    /// Seconds from the beginning of the trace.
    pub arrival_s: f64,
    /// Tokens of the prompt, history included.
    pub input_tokens: u32,
    /// Tokens of the answer; 0 when it failed.
    pub output_tokens: u32,
    /// Names of the blocks that the prompt is made of: equal names at the beginning of two prompts are a shared prefix.
    /// Empty when the trace does not say.
    pub blocks: Box<[u64]>,
    /// The conversation that it is a turn of.
    pub session: Option<u64>,
    /// Seconds until the service's answer was complete, where the trace says it.
    pub elapsed_s: Option<f64>,
    /// True if the service did not answer.
    pub failed: bool,
    /// Its place in [`Trace::classes`].
    pub class: u16,
}

/// Which service was asked, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Class {
    /// The model, such as `ChatGPT`; may be empty.
    pub model: String,
    /// The way in, such as `Conversation log` or `API log`; may be empty.
    pub log_type: String,
}

impl Class {
    /// Both names, for people; may be empty.
    pub fn name(&self) -> String {
        [self.model.as_str(), &self.log_type].join(" ").trim().to_owned()
    }

    /// The class of these names.
    pub fn named(model: &str, log_type: &str) -> Self {
        Self { model: model.to_owned(), log_type: log_type.to_owned() }
    }
}

impl TraceRequest {
    /// A request of the only class, alone and answered.
    pub(crate) fn plain(arrival_s: f64, input_tokens: u32, output_tokens: u32) -> Self {
        Self {
            arrival_s,
            input_tokens,
            output_tokens,
            blocks: [].into(),
            session: None,
            elapsed_s: None,
            failed: false,
            class: 0,
        }
    }
}

impl Trace {
    /// A trace of `requests`, brought into the order of their arrival.
    pub(crate) fn new(
        mut requests: Vec<TraceRequest>,
        classes: Vec<Class>,
        block_tokens: usize,
        origin: String,
    ) -> Self {
        requests.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
        let mut trace = Self { requests, classes, block_tokens, resolution_s: 0.0, origin };
        trace.resolution_s = reshape::resolution(&trace.requests);
        trace
    }

    /// Seconds from the first arrival to the last.
    pub fn span_s(&self) -> f64 {
        match (self.requests.first(), self.requests.last()) {
            (Some(first), Some(last)) => last.arrival_s - first.arrival_s,
            _ => 0.0,
        }
    }

    /// Requests per second, on average.
    pub fn rate(&self) -> f64 {
        (self.requests.len().saturating_sub(1)) as f64 / self.span_s().max(f64::MIN_POSITIVE)
    }

    /// Seconds between arrivals that follow each other.
    pub fn gaps_s(&self) -> Vec<f64> {
        self.requests.windows(2).map(|pair| pair[1].arrival_s - pair[0].arrival_s).collect()
    }

    /// For each request, the place of the turn of its conversation that came before it.
    pub fn previous_turns(&self) -> Vec<Option<usize>> {
        let mut last = std::collections::HashMap::new();
        let place = |(index, request): (usize, &TraceRequest)| last.insert(request.session?, index);
        self.requests.iter().enumerate().map(place).collect()
    }

    /// Seconds that a user thought between the answer to the request at `before` and the request at `index`: what is left of
    /// the time between their arrivals when the service's answer is taken off. 0 where the trace does not say how long that
    /// answer took, as only BurstGPT's third file does: nobody knows then which part of the time was waiting.
    pub fn think_s(&self, before: usize, index: usize) -> f64 {
        let (asked, asks) = (&self.requests[before], &self.requests[index]);
        asked.elapsed_s.map_or(0.0, |elapsed| (asks.arrival_s - asked.arrival_s - elapsed).max(0.0))
    }
}
