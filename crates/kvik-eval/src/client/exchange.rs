//! What happened to one request, and when.

use serde::Serialize;

/// One request and its answer. Times are seconds since the load began.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// When it was to be sent; latencies count from here, so that a client that is late cannot hide a server that is.
    pub due_s: f64,
    /// When it was sent.
    pub sent_s: f64,
    /// When the first token came.
    pub first_s: Option<f64>,
    /// When the last token came.
    pub last_s: Option<f64>,
    /// When it was over.
    pub end_s: f64,
    /// Seconds between pieces of the answer that follow each other.
    #[serde(skip)]
    pub gaps_s: Vec<f32>,
    /// Tokens of the prompt, as the server counts them; 0 if it does not say.
    pub prompt_tokens: u64,
    /// Those of them that it took from a cache.
    pub cached_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Tokens that were asked for, at most.
    pub wanted_tokens: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// With the whole answer.
    Complete,
    /// The server had too much to do: 429 or 503.
    Overloaded {
        /// The status.
        status: u16,
    },
    /// The server said no.
    Refused {
        /// The status; 200 if it said so within a stream.
        status: u16,
        /// Why.
        message: String,
    },
    /// There was no connection.
    Unreachable {
        /// Why.
        message: String,
    },
    /// The answer was not complete in time.
    Timeout,
    /// The connection ended before the answer did.
    Disconnected,
    /// What came was no stream of completions.
    Malformed {
        /// What is wrong with it.
        message: String,
    },
    /// The load was stopped before the answer was complete.
    Stopped,
}

impl Outcome {
    /// A word for it, to count under.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Overloaded { .. } => "overloaded",
            Self::Refused { .. } => "refused",
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Malformed { .. } => "malformed",
            Self::Stopped => "stopped",
        }
    }

    /// What the server or the connection said, where something was said.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Refused { message, .. } | Self::Unreachable { message } | Self::Malformed { message } => {
                Some(message)
            }
            _ => None,
        }
    }
}

impl Exchange {
    /// An exchange that has not begun.
    pub fn due(due_s: f64, sent_s: f64, wanted_tokens: u64) -> Self {
        Self {
            due_s,
            sent_s,
            first_s: None,
            last_s: None,
            end_s: sent_s,
            gaps_s: Vec::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            wanted_tokens,
            outcome: Outcome::Stopped,
        }
    }

    /// A piece of the answer came at `at` seconds.
    pub(super) fn piece(&mut self, at: f64) {
        if let Some(last) = self.last_s.replace(at) {
            self.gaps_s.push((at - last) as f32);
        }
        self.first_s.get_or_insert(at);
    }

    /// True with the whole answer.
    pub fn is_complete(&self) -> bool {
        self.outcome == Outcome::Complete
    }

    /// Seconds until the first token.
    pub fn ttft_s(&self) -> Option<f64> {
        self.first_s.map(|first| first - self.due_s)
    }

    /// Seconds for each token behind the first, on average.
    pub fn tpot_s(&self) -> Option<f64> {
        let steps = self.completion_tokens.checked_sub(1).filter(|&steps| steps > 0)?;
        Some((self.last_s? - self.first_s?) / steps as f64)
    }

    /// Seconds until the answer was complete.
    pub fn latency_s(&self) -> f64 {
        self.end_s - self.due_s
    }
}
