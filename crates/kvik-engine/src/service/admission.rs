//! Schedule: who runs, who waits, who has to give way, and how many tokens each gets.

use super::{
    job::{Job, Running, Task, rank},
    plan::{Admission, Rank, Share, View, plan, victim},
    request::{RequestError, Update},
    worker::Worker,
};
use crate::{generate::StopReason, prefix::Begun};
use kvik_kv::CacheError;
use std::{sync::atomic::Ordering::Relaxed, time::Instant};

/// Whoever shares so many tokens with a prompt that is being read waits until they are there.
const WORTH_WAITING_TOKENS: usize = 64;

impl Worker {
    /// Decides what the next forward pass computes, and admits and preempts for it.
    pub(super) fn schedule(&mut self) -> Vec<Share> {
        self.make_way();
        let views: Vec<View> = self.running.iter().map(|running| self.view(running)).collect();
        let ranks: Vec<Rank> = self.waiting.iter().map(|job| self.rank(job)).collect();
        // The plan knows them by their places, so nobody moves up before it is made.
        let mut waiting: Vec<Option<Job>> = self.waiting.drain(..).map(Some).collect();
        let step_tokens = self.options.step_tokens;
        let decoding = views.iter().filter(|view| view.decodes()).count();
        let most = step_tokens.saturating_sub(decoding);
        let prefill_tokens = self.pace.prefill_tokens(decoding, ranks.len(), most);
        let mut shares = plan(&views, &ranks, prefill_tokens, &mut |index| self.admit(&mut waiting[index]));
        self.waiting.extend(waiting.into_iter().flatten());
        self.fit(&mut shares);
        self.idle_round = shares.is_empty();
        self.control.running.store(self.running.len(), Relaxed);
        shares
    }

    /// Lets a job run if there is room for it, and takes it out of `slot` then.
    fn admit(&mut self, slot: &mut Option<Job>) -> Admission {
        let Some(job) = slot.as_ref() else { return Admission::Later };
        if self.full || self.running.len() >= self.options.max_running {
            return Admission::Full;
        }
        if self.awaits_prefix(job) {
            return Admission::Later;
        }
        let begun = match self.begin(job) {
            Ok(begun) => begun,
            Err(error) => {
                job.tell(Update::Failed(RequestError::Engine(error.to_string())));
                self.totals.failed += 1;
                self.ledger.leave(&job.owner);
                *slot = None;
                return Admission::Later;
            }
        };
        if !self.has_room(job, begun.tokens) {
            self.full = true;
            return Admission::Full;
        }
        let Some(mut job) = slot.take() else { return Admission::Later };
        if job.times.admitted.is_none() {
            let now = Instant::now();
            job.times.admitted = Some(now);
            job.cached_tokens = begun.tokens;
            self.totals.cached_tokens += begun.tokens as u64;
            self.meters.queue.record(now - job.times.arrived);
            job.tell(Update::Started { prefix_tokens: begun.tokens });
        }
        // What others have computed is not paid for.
        job.paid_tokens = job.paid_tokens.max(begun.tokens);
        let piece = begun.cache.own_tokens().is_none().then_some(self.engine.prefill_chunk_tokens);
        let Begun { cache, pauses, lock, .. } = begun;
        let running = Running {
            job,
            cache,
            lock,
            pauses,
            piece,
            suspect: false,
            bytes: 0,
            peak_bytes: 0,
            ended: false,
        };
        let view = self.view(&running);
        self.running.push(running);
        Admission::Admitted(view)
    }

    /// Where a job begins: with the longest prefix that somebody has left.
    fn begin(&mut self, job: &Job) -> Result<Begun, CacheError> {
        let store = &mut self.engine.local.store;
        match job.task {
            Task::Generate(_) => self.prefixes.begin(store, job.owner.as_ref(), &job.pipeline, job.prompt()),
            // The hidden states of all tokens are wanted.
            Task::Embed(_) => {
                Ok(Begun { cache: store.sequence(), tokens: 0, pauses: Vec::new(), lock: None })
            }
        }
    }

    /// True if what a job could begin with is on its way.
    fn awaits_prefix(&self, job: &Job) -> bool {
        job.loading.as_ref().is_some_and(|loading| self.prefixes.is_loading(loading))
            || self.is_about_to_be_read(job)
    }

    /// True if a job that runs is reading what this one could begin with.
    fn is_about_to_be_read(&self, job: &Job) -> bool {
        let Some(scope) = self.options.prefix_sharing.scope(job.owner.as_ref()) else { return false };
        let Task::Generate(_) = job.task else { return false };
        self.running.iter().any(|running| {
            let other = &running.job;
            if other.priority < job.priority
                || running.piece.is_some()
                || running.unread() == 0
                || !matches!(other.task, Task::Generate(_))
                || self.options.prefix_sharing.scope(other.owner.as_ref()).as_ref() != Some(&scope)
            {
                return false;
            }
            let common = common_prefix(other.prompt(), job.prompt());
            common >= running.cache.len() + WORTH_WAITING_TOKENS
        })
    }

    /// True if the memory that a job will need is free, or held by prefixes that nobody uses. `held_tokens` of it are there already.
    fn has_room(&mut self, job: &Job, held_tokens: usize) -> bool {
        let shape = self.engine.local.store.shape();
        let held = self.budget.whole(shape, held_tokens);
        let own = self.budget.expected(shape, job.extent()).saturating_sub(held);
        let promised: usize = self.running.iter().map(|running| self.promised(running)).sum();
        let wanted = self.used_bytes() + promised + own;
        let over = wanted.saturating_sub(self.budget.bytes);
        if over == 0 || self.running.is_empty() {
            return true;
        }
        // Not for a job that would have to wait all the same.
        self.prefixes.statistics().bytes >= over
            && self.prefixes.evict(&mut self.engine.local.store, over) >= over
    }

    /// Bytes that a running job is expected to take beyond those that it has.
    fn promised(&self, running: &Running) -> usize {
        let shape = self.engine.local.store.shape();
        let extent = running.job.extent();
        let expected = self.budget.expected(shape, extent);
        if extent.pipeline.is_full() {
            return expected.saturating_sub(self.budget.whole(shape, running.cache.len()));
        }
        if running.unread() > 0 {
            return expected.saturating_sub(running.bytes);
        }
        self.budget.growth(shape, extent.pipeline, 0, extent.limit.saturating_sub(extent.tokens).min(64))
    }

    /// Frees a place for whoever waits with a higher priority than somebody who runs: one in a step.
    fn make_way(&mut self) {
        let no_place = self.full || self.running.len() >= self.options.max_running;
        let ready = self.waiting.iter().filter(|job| !self.awaits_prefix(job));
        let highest = ready.map(|job| job.priority).max();
        if let (true, Some(highest), Some(victim)) = (no_place, highest, self.victim())
            && self.running[victim].job.priority < highest
        {
            self.preempt(victim);
        }
    }

    fn victim(&self) -> Option<usize> {
        victim(self.running.iter().map(|running| rank(&running.job, 0)))
    }

    /// Makes sure that what `shares` will add fits the budget: first prefixes give way, then those who run.
    pub(super) fn fit(&mut self, shares: &mut Vec<Share>) {
        loop {
            let shape = self.engine.local.store.shape();
            let growth = |share: &Share| {
                let running = &self.running[share.sequence];
                self.budget.growth(shape, &running.job.pipeline, running.cache.len(), share.tokens)
            };
            let wanted = self.used_bytes() + shares.iter().map(growth).sum::<usize>();
            let over = wanted.saturating_sub(self.budget.bytes);
            if over == 0 || shares.is_empty() {
                return;
            }
            if self.prefixes.evict(&mut self.engine.local.store, over) > 0 {
                continue;
            }
            let Some(victim) = self.victim() else { return };
            if self.running.len() > 1 {
                self.budget.was_too_low();
                self.preempt(victim);
            } else if self.running[victim].job.completion_tokens() > 0 {
                self.finish(victim, StopReason::ContextFull);
                self.drop_ended();
            } else {
                self.fail(victim, RequestError::OutOfMemory { budget_bytes: self.budget.bytes });
                self.drop_ended();
            }
            shares.retain(|share| share.sequence != victim);
            for share in shares.iter_mut().filter(|share| share.sequence > victim) {
                share.sequence -= 1;
            }
        }
    }

    /// Takes a running job's memory. It waits again, and goes on where it stopped.
    pub(super) fn preempt(&mut self, index: usize) {
        let mut running = self.running.remove(index);
        running.start_over();
        running.job.preemptions += 1;
        self.totals.preemptions += 1;
        self.full = false;
        self.waiting.push(running.job);
        drop((running.cache, running.lock));
        self.engine.local.store.reclaim();
    }

    fn rank(&self, job: &Job) -> Rank {
        rank(job, self.ledger.served(&job.owner))
    }

    fn view(&self, running: &Running) -> View {
        running.view(self.ledger.served(&running.job.owner))
    }
}

/// Tokens that two prompts have in common at their beginning.
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
