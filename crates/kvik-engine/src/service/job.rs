//! A request inside the service: what is known of its tokens, and how far it has come.
//!
//! A job knows the tokens of its prompt and those of its answer so far. While it runs it has a cache besides, which holds the keys
//! and values of the first of them; whatever is missing there is computed next. So a job that has to give its cache away loses
//! time and nothing else: with an empty cache it reads its prompt again, then follows its answer, and goes on where it stopped.
//! If its cache was moved to a file meanwhile, it goes on with that.

use super::{
    control::InFlight,
    fairness::Owner,
    memory::Extent,
    moved::Moved,
    plan::View,
    request::{RequestId, Timings, Update, Usage},
};
use crate::{
    generate::{Completion, StopReason},
    prefix::{Loading, PrefixLock},
};
use kvik_kv::{Pipeline, SequenceCache};
use kvik_model::layers::Rows;
use std::{cmp::Reverse, time::Instant};
use tokio::sync::mpsc::UnboundedSender;

/// A request and what became of it so far.
pub(super) struct Job {
    pub(super) id: RequestId,
    pub(super) owner: Owner,
    pub(super) priority: i32,
    pub(super) deadline: Option<Instant>,
    pub(super) pipeline: Pipeline,
    /// The prompt, then the answer.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) task: Task,
    pub(super) updates: UnboundedSender<Update>,
    /// Its prefix is on its way from a disk.
    pub(super) loading: Option<Loading>,
    /// The cache that it had to give away, if that is not to be computed again.
    pub(super) moved: Option<Moved>,
    /// Tokens that were computed at least once: for those its owner has paid.
    pub(super) paid_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) times: Times,
    pub(super) preemptions: u32,
    pub(super) _in_flight: InFlight,
}

/// What is wanted of a job.
pub(super) enum Task {
    /// An answer.
    Generate(Box<Completion>),
    /// The mean of the hidden states.
    Embed(MeanState),
}

/// When something happened to a job.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) arrived: Instant,
    pub(super) admitted: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
}

/// A mean of hidden states.
#[derive(Default)]
pub(super) struct MeanState {
    sum: Vec<f64>,
    rows: usize,
}

impl MeanState {
    /// Adds rows `from..from + rows` of `hidden`.
    pub(super) fn add(&mut self, hidden: &Rows, from: usize, rows: usize) {
        self.sum.resize(hidden.cols(), 0.0);
        for row in from..from + rows {
            self.sum.iter_mut().zip(hidden.row(row)).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        self.rows += rows;
    }

    /// Forgets what was added.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The mean.
    pub(super) fn mean(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.rows.max(1) as f64) as f32).collect()
    }
}

impl Job {
    /// Tells its client; one that has gone away is noticed in the next step.
    pub(super) fn tell(&self, update: Update) {
        let _ = self.updates.send(update);
    }

    /// Tells its client that it is done, and before that the text that was held back.
    pub(super) fn conclude(&mut self, reason: StopReason) {
        let (reason, tail) = match &mut self.task {
            Task::Generate(completion) => (completion.finish(reason), completion.fresh_text().to_owned()),
            Task::Embed(_) => (reason, String::new()),
        };
        if !tail.is_empty() {
            self.tell(Update::Tail(tail));
        }
        let (usage, timings) = (self.usage(), self.timings(Instant::now()));
        self.tell(Update::Finished { reason, usage, timings });
    }

    /// True if nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.updates.is_closed()
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// The prompt.
    pub(super) fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    /// Tokens of the answer.
    pub(super) fn completion_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    pub(super) fn extent(&self) -> Extent<'_> {
        let limit = match &self.task {
            Task::Generate(completion) => self.prompt_tokens + completion.limit(),
            Task::Embed(_) => self.prompt_tokens,
        };
        let (prompt_tokens, tokens) = (self.prompt_tokens, self.tokens.len());
        Extent { pipeline: &self.pipeline, prompt_tokens, tokens, limit }
    }

    /// Forgets the cache that was moved: all is computed again.
    pub(super) fn forget_moved(&mut self) {
        self.moved = None;
        self.begin_anew();
    }

    /// Forgets what depends on tokens that are computed again.
    pub(super) fn begin_anew(&mut self) {
        if let Task::Embed(mean) = &mut self.task {
            mean.clear();
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.completion_tokens(),
        }
    }

    pub(super) fn timings(&self, now: Instant) -> Timings {
        let Times { arrived, admitted, first_token, last_token } = self.times;
        let since = |end: Option<Instant>, start: Instant| {
            end.map_or(0.0, |end| end.saturating_duration_since(start).as_secs_f64())
        };
        Timings {
            queue_seconds: since(admitted.or(Some(now)), arrived),
            time_to_first_token_seconds: since(first_token, arrived),
            decode_seconds: first_token.map_or(0.0, |first| since(last_token, first)),
            total_seconds: since(Some(now), arrived),
            preemptions: self.preemptions,
        }
    }
}

/// A job that is being computed.
pub(super) struct Running {
    pub(super) job: Job,
    /// The keys and values of the first of the job's tokens.
    pub(super) cache: SequenceCache,
    /// Keeps the prefix that it began with, or has contributed, in the tree.
    pub(super) lock: Option<PrefixLock>,
    /// Where reading the prompt pauses, so that its prefix can be kept.
    pub(super) pauses: Vec<usize>,
    /// See [`View::piece`].
    pub(super) piece: Option<usize>,
    pub(super) suspect: bool,
    /// Bytes of RAM that the cache took when it was last measured, and at most.
    pub(super) bytes: usize,
    pub(super) peak_bytes: usize,
    /// It has ended and is about to be dropped.
    pub(super) ended: bool,
}

impl Running {
    /// Tokens of its prompt that are not computed.
    pub(super) fn unread(&self) -> usize {
        self.job.prompt_tokens.saturating_sub(self.cache.len())
    }

    /// As the plan sees it; its owner was `served` so much.
    pub(super) fn view(&self, served: u64) -> View {
        let computed = self.cache.len();
        let pause = self.pauses.iter().copied().find(|&pause| pause > computed);
        let unread = match pause {
            Some(pause) => self.unread().min(pause - computed),
            None => self.unread(),
        };
        View {
            rank: rank(&self.job, served),
            unread,
            unfollowed: if unread > 0 { 0 } else { self.job.tokens.len() - computed },
            piece: self.piece,
            stepwise: !self.job.pipeline.is_full(),
            suspect: self.suspect,
        }
    }

    /// Empties the cache: all is computed again.
    pub(super) fn start_over(&mut self) {
        self.cache.clear();
        self.job.begin_anew();
    }
}

/// Where a job stands among others.
pub(super) fn rank(job: &Job, served: u64) -> super::plan::Rank {
    super::plan::Rank { priority: Reverse(job.priority), served, arrival: job.id.0 }
}
