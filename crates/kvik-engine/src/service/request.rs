//! What a client asks of the service, and what it hears.

use crate::{
    generate::StopReason,
    log_softmax::TokenLogprob,
    sampling::{SamplingOptions, TokenMask},
};
use kvik_kv::Pipeline;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedReceiver;

/// A request: what to continue, and how.
#[derive(Default)]
pub struct Request {
    /// The tokens to continue. Empty means the start of a text, where the tokenizer has a token for that.
    pub prompt: Vec<u32>,
    /// The methods that rewrite its cache.
    pub pipeline: Pipeline,
    /// How many tokens to generate at most; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// The answer does not end by itself before so many tokens.
    pub min_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Taken from the logit of a token once for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Taken from the logit of a token that the answer has.
    pub presence_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Strings that end the answer when they appear in it; they are not part of it.
    pub stop: Vec<String>,
    /// Report the log-probability of every token, and this many of the most likely ones beside it.
    pub logprobs: Option<usize>,
    /// Go on after the model's end-of-text token.
    pub ignore_end_of_text: bool,
    /// Takes out tokens before each is chosen: the form that the answer must have.
    pub constraint: Option<Box<dyn TokenMask>>,
    /// Higher runs earlier, and may take the place of lower that runs already.
    pub priority: i32,
    /// On whose behalf it comes: owners of the same priority get equal shares of the machine.
    pub owner: Option<Arc<str>>,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Not an answer is wanted but the prompt's embedding: the mean of its tokens' hidden states behind the last norm.
    pub want_hidden: bool,
}

/// Tells the requests of a service apart; later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What happens with a request. [`Update::Finished`] and [`Update::Failed`] are the last.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// It is being computed from now on.
    Started {
        /// Tokens of the prompt that need not be, because another request had them.
        prefix_tokens: usize,
    },
    /// A token was chosen.
    Token {
        /// The token.
        id: u32,
        /// The text that became certain with it: often none, while a character or a stop string may be unfinished.
        text: String,
        /// Its log-probability, if the request asked for it.
        logprob: Option<TokenLogprob>,
    },
    /// Text that was held back because it might have become a stop string, and is certain because the answer ends.
    /// [`Update::Finished`] follows.
    Tail(String),
    /// The embedding that was asked for, `[hidden]`. [`Update::Finished`] follows.
    Embedding(Vec<f32>),
    /// It is done.
    Finished {
        /// Why the answer ends.
        reason: StopReason,
        /// What it took.
        usage: Usage,
        /// And how long.
        timings: Timings,
    },
    /// It cannot be done. The service goes on.
    Failed(RequestError),
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Those of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were not computed, because another request had them.
    pub cached_tokens: usize,
    /// Those of the answer, the one that ended it included.
    pub completion_tokens: usize,
}

/// How long a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From its arrival until it was first computed.
    pub queue_seconds: f64,
    /// From its arrival to the first token; 0 if there was none.
    pub time_to_first_token_seconds: f64,
    /// From the first token to the last.
    pub decode_seconds: f64,
    /// From its arrival to its end.
    pub total_seconds: f64,
    /// How often it had to give its memory to others.
    pub preemptions: u32,
}

/// Why a request that was accepted cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The engine says why.
    #[error("{0}")]
    Engine(String),
    /// Its time was over before it was first computed.
    #[error("the request waited until its deadline: the server has too much to do; try again later")]
    Deadline,
    /// Its keys and values do not fit the budget, not even alone.
    #[error(
        "the request needs more memory for keys and values than the server's budget of {budget_bytes} bytes: shorten \
         the prompt, or ask for a pipeline that keeps less"
    )]
    OutOfMemory {
        /// The budget.
        budget_bytes: usize,
    },
    /// The service ended first.
    #[error("the server is shutting down and could not finish the request: send it again when it is back")]
    Stopped,
    /// Something that must not happen has happened.
    #[error("the server failed while it computed the request ({0}): this is a defect of the server")]
    Internal(String),
}

/// Why a request is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait.
    #[error("too many requests are waiting: try again in {} seconds", .retry_after.as_secs().max(1))]
    Overloaded {
        /// When a place should be free.
        retry_after: Duration,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {context_tokens}, of which at least one is for \
         the answer: shorten the prompt"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// The prompt's keys and values do not fit the budget, not even alone.
    #[error(
        "the prompt's keys and values take {needed_bytes} bytes and the server's budget for them is {budget_bytes}: \
         shorten the prompt, or give the server more memory"
    )]
    TooLarge {
        /// Bytes that they take.
        needed_bytes: usize,
        /// Bytes that they may take.
        budget_bytes: usize,
    },
    /// No new requests are taken, because the service is about to end.
    #[error("the server is shutting down and takes no new requests")]
    Draining,
    /// The service has failed and does not go on.
    #[error("the server has failed and must be restarted: {0}")]
    Unhealthy(String),
    /// Something in the request means nothing.
    #[error("{0}")]
    Invalid(String),
}

/// What becomes of a request, as it becomes. Dropping it cancels the request within a step.
pub struct Reply {
    pub(super) id: RequestId,
    pub(super) updates: UnboundedReceiver<Update>,
    pub(super) ended: bool,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Reply {
    /// Which request it is the reply to.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next update; `None` after the last.
    pub async fn next(&mut self) -> Option<Update> {
        if self.ended {
            return None;
        }
        let update = self.updates.recv().await;
        self.passed_on(update)
    }

    /// As [`Self::next`], for threads that may wait. Must not be called where asynchronous tasks run.
    pub fn blocking_next(&mut self) -> Option<Update> {
        if self.ended {
            return None;
        }
        let update = self.updates.blocking_recv();
        self.passed_on(update)
    }

    /// The last update is [`Update::Finished`] or [`Update::Failed`], whatever happened to the service.
    fn passed_on(&mut self, update: Option<Update>) -> Option<Update> {
        let update = update.unwrap_or(Update::Failed(RequestError::Stopped));
        self.ended = matches!(update, Update::Finished { .. } | Update::Failed(_));
        Some(update)
    }
}
