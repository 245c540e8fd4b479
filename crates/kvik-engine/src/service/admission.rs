//! Schedule: who runs, who waits, who has to give way, and how many tokens each gets.

use super::{
    job::{Job, Running, Task, rank},
    moved::{Fetched, Moved, WORTH_MOVING_TOKENS},
    plan::{Admission, Rank, Share, View, plan, victim},
    request::{RequestError, Update},
    worker::Worker,
};
use crate::{
    common_prefix::common_prefix,
    generate::StopReason,
    prefix::{Begun, PrefixLock},
};
use kvik_kv::{CacheError, SequenceCache};
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
        if job.moved.is_some()
            && let Some(admission) = self.readmit(slot)
        {
            return admission;
        }
        let Some(job) = slot.as_ref() else { return Admission::Later };
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
        let again = job.times.admitted.is_some();
        if let Task::Generate(_) = job.task {
            self.prefixes.admitted(job.owner.as_ref(), job.prompt(), &begun, again);
        }
        if !again {
            let now = Instant::now();
            job.times.admitted = Some(now);
            job.cached_tokens = begun.tokens;
            self.totals.cached_tokens += begun.tokens as u64;
            self.meters.queue.record(now - job.times.arrived);
            job.tell(Update::Started { prefix_tokens: begun.tokens });
        }
        // What others have computed is not paid for.
        job.paid_tokens = job.paid_tokens.max(begun.tokens);
        let Begun { cache, pauses, lock, .. } = begun;
        self.run_job(job, cache, pauses, lock, 0)
    }

    /// Adds a job to those that run.
    fn run_job(
        &mut self,
        job: Job,
        cache: SequenceCache,
        pauses: Vec<usize>,
        lock: Option<PrefixLock>,
        peak_bytes: usize,
    ) -> Admission {
        let piece = cache.own_tokens().is_none().then_some(self.engine.prefill_chunk_tokens);
        let (suspect, ended) = (false, false);
        let running = Running { job, cache, lock, pauses, piece, suspect, bytes: 0, peak_bytes, ended };
        let view = self.view(&running);
        self.running.push(running);
        self.measure(self.running.len() - 1);
        Admission::Admitted(view)
    }

    /// Lets a job whose cache was moved go on with it. `None` if it is to be computed again.
    fn readmit(&mut self, slot: &mut Option<Job>) -> Option<Admission> {
        let job = slot.as_mut()?;
        let moved = job.moved.as_ref()?;
        let shape = self.engine.local.store.shape();
        // What the tree has of the prompt by now takes no file to be read, and no memory.
        if self.held(job, moved) + WORTH_MOVING_TOKENS > moved.tokens {
            job.forget_moved();
            return None;
        }
        let own = self.budget.expected_again(shape, job.extent(), moved.tokens, moved.bytes);
        if !self.fits(own) {
            moved.image.put_back();
            self.full = true;
            return Some(Admission::Full);
        }
        let cache = match self.mover.as_ref().map_or(Fetched::Lost, |mover| mover.fetch(&moved.image, job.id))
        {
            // Its turn has come, so nobody else takes the room meanwhile.
            Fetched::Coming => return Some(Admission::Full),
            Fetched::Here(image) => self.import(job, moved, &image),
            Fetched::Lost => None,
        };
        let Some(cache) = cache else {
            job.forget_moved();
            return None;
        };
        let mut job = slot.take()?;
        let Moved { tokens, pauses, peak_bytes, .. } = job.moved.take()?;
        self.totals.restored_tokens += tokens as u64;
        Some(self.run_job(job, cache, pauses, None, peak_bytes))
    }

    /// Tokens that a job whose cache was moved could begin with instead.
    fn held(&self, job: &Job, moved: &Moved) -> usize {
        match job.task {
            Task::Generate(_) => {
                let store = &self.engine.local.store;
                self.prefixes.held(store, job.owner.as_ref(), job.prompt(), moved.own_tokens)
            }
            Task::Embed(_) => 0,
        }
    }

    /// The cache of an image. `None`, and a report, if it is not to be had.
    fn import(&mut self, job: &Job, moved: &Moved, image: &[u8]) -> Option<SequenceCache> {
        let reason = match self.engine.local.store.import_bare(image, &job.pipeline) {
            Ok(cache) if cache.len() == moved.tokens => return Some(cache),
            Ok(_) => "it has another number of tokens".to_owned(),
            Err(error) => error.to_string(),
        };
        (self.report)(&format!(
            "the cache of request {} was moved to a file and is computed again: {reason}",
            job.id
        ));
        None
    }

    /// Where a job begins: with the longest prefix that somebody has left.
    fn begin(&mut self, job: &Job) -> Result<Begun, CacheError> {
        let store = &mut self.engine.local.store;
        match job.task {
            Task::Generate(_) => self.prefixes.begin(store, job.owner.as_ref(), &job.pipeline, job.prompt()),
            // The hidden states of all tokens are wanted.
            Task::Embed(_) => Ok(Begun::without_prefix(store.sequence())),
        }
    }

    /// True if what a job could begin with is on its way.
    fn awaits_prefix(&self, job: &Job) -> bool {
        job.moved.is_none()
            && (job.loading.as_ref().is_some_and(|loading| self.prefixes.is_loading(loading))
                || self.is_about_to_be_read(job))
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
        self.fits(own)
    }

    /// True if a job that will take `own` more bytes fits beside those that run.
    fn fits(&mut self, own: usize) -> bool {
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
        running.job.moved = self.move_out(&running);
        match running.job.moved {
            Some(_) => self.totals.preemptions_to_tier += 1,
            None => running.job.begin_anew(),
        }
        running.job.preemptions += 1;
        self.totals.preemptions += 1;
        self.full = false;
        self.waiting.push(running.job);
        drop((running.cache, running.lock));
        self.engine.local.store.reclaim();
    }

    /// Moves the cache of a sequence, if there is a folder for it, it is worth it, and it can be written down. These are computed
    /// again: short ones; those that have parts in files, which would all have to be in RAM (`tier`, and `shadowkv` with its values
    /// in a file); and those whose methods know what no image says (`shadowkv` behind its prompt).
    fn move_out(&self, running: &Running) -> Option<Moved> {
        let (mover, store, cache) = (self.mover.as_ref()?, &self.engine.local.store, &running.cache);
        let (tokens, bytes) = (cache.len(), cache.bytes_beside(store, None));
        if tokens < WORTH_MOVING_TOKENS || cache.file_bytes(store) > 0 || !mover.has_room(bytes) {
            return None;
        }
        // A little more than the blocks, so that it does not grow while it is written.
        let mut image = Vec::with_capacity(bytes + bytes / 64 + (64 << 10));
        cache.export_bare(store, &mut image).ok()?;
        Some(Moved {
            image: mover.take(image),
            tokens,
            bytes,
            peak_bytes: running.peak_bytes,
            own_tokens: cache.own_tokens(),
            pauses: running.pauses.clone(),
        })
    }

    fn rank(&self, job: &Job) -> Rank {
        rank(job, self.ledger.served(&job.owner))
    }

    fn view(&self, running: &Running) -> View {
        running.view(self.ledger.served(&running.job.owner))
    }
}
