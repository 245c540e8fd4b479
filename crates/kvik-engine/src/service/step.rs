//! Forward, sample, publish: one step of all who run.

use super::{
    job::Task,
    plan::Share,
    request::{RequestError, Update},
    status::Batch,
    worker::Worker,
};
use crate::{error::EngineError, generate::Chosen, language_model::LocalModel};
use kvik_kv::CacheError;
use kvik_model::{
    ForwardError, Outputs,
    layers::{Logits, Phase, Span},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

/// Decoded tokens after which a sequence's bytes are measured again.
const MEASURE_EVERY: usize = 64;

/// What became of one sequence in a step.
pub(super) struct Outcome {
    sequence: usize,
    result: Result<Option<Chosen>, RequestError>,
}

impl Worker {
    /// Computes the tokens that `shares` name. `None` if there are none, or they have to be computed otherwise.
    pub(super) fn forward(&mut self, shares: &[Share]) -> Option<Outputs> {
        if shares.is_empty() {
            return None;
        }
        let mut batch = Batch { sequences: shares.len(), ..Batch::default() };
        let mut spans = Vec::with_capacity(shares.len());
        let mut next = shares.iter().peekable();
        let mut lens = Vec::with_capacity(shares.len());
        for (index, running) in self.running.iter_mut().enumerate() {
            let Some(share) = next.next_if(|share| share.sequence == index) else { continue };
            let (computed, job) = (running.cache.len(), &running.job);
            lens.push(computed);
            let end = computed + share.tokens;
            let reads = computed < job.prompt_tokens;
            let (phase, count) = match reads {
                true => (Phase::Prefill, &mut batch.prefill_tokens),
                false if end == job.tokens.len() => (Phase::Decode, &mut batch.decode_tokens),
                false => (Phase::Decode, &mut batch.replay_tokens),
            };
            *count += share.tokens;
            let logits = match job.task {
                Task::Embed(_) => Logits::Hidden,
                Task::Generate(_) if end == job.tokens.len() => Logits::Last,
                Task::Generate(_) => Logits::None,
            };
            spans.push(Span { cache: &mut running.cache, tokens: &job.tokens[computed..end], logits, phase });
        }
        let LocalModel { model, store, workspace } = &mut self.engine.local;
        let computed = model.run(&self.engine.pool, workspace, store, &mut spans);
        drop(spans);
        match computed {
            Ok(outputs) => {
                self.count(shares);
                self.last_step = batch;
                self.totals.steps += 1;
                self.totals.prompt_tokens += batch.prefill_tokens as u64;
                self.budget.was_enough();
                Some(outputs)
            }
            Err(error) => {
                self.recover(shares, &lens, error);
                None
            }
        }
    }

    /// Charges owners for what was computed for the first time.
    fn count(&mut self, shares: &[Share]) {
        for share in shares {
            let running = &mut self.running[share.sequence];
            let (job, computed) = (&mut running.job, running.cache.len());
            // It has come as far as it was when the step failed.
            running.suspect &= computed < job.tokens.len();
            let paid = job.paid_tokens.min(computed);
            let prompt = computed.min(job.prompt_tokens) - paid.min(job.prompt_tokens);
            self.ledger.charge(&job.owner, prompt, computed - paid - prompt);
            job.paid_tokens = job.paid_tokens.max(computed);
        }
    }

    /// After a step that failed: whose fault it was shows when each is computed alone. Before it the sequences had `lens` tokens.
    fn recover(&mut self, shares: &[Share], lens: &[usize], error: ForwardError) {
        if let (ForwardError::Cache(CacheError::Full(_)), true) = (&error, self.running.len() > 1) {
            // The address space is larger than the budget, so this is rare, and nobody's fault. Where a method had no room to
            // rewrite, some have come further already.
            self.rewind(shares, lens);
            if let Some(last) = shares.last() {
                self.preempt(last.sequence);
            }
            return;
        }
        if let [share] = shares {
            self.fail(share.sequence, RequestError::Engine(error.to_string()));
            return;
        }
        self.rewind(shares, lens);
        shares.iter().for_each(|share| self.running[share.sequence].suspect = true);
    }

    /// Takes a step that failed back: the sequences have `lens` tokens again, or none.
    fn rewind(&mut self, shares: &[Share], lens: &[usize]) {
        for (share, &len) in shares.iter().zip(lens) {
            let running = &mut self.running[share.sequence];
            // Methods may have seen what was not computed in the end. Without methods what is there is whole, and the tokens of the
            // step can be taken back, unless a sliding window has moved on.
            let whole = running.job.pipeline.is_full();
            if !whole || running.cache.truncate(&mut self.engine.local.store, len) != len {
                running.start_over();
            }
        }
    }

    /// Ends prompts that were read to their end, and chooses a token for everyone who got logits.
    pub(super) fn sample(&mut self, shares: &[Share], outputs: &Outputs) -> Vec<Outcome> {
        let (mut logit_row, mut hidden_row) = (0, 0);
        let mut outcomes = Vec::with_capacity(shares.len());
        for &Share { sequence, tokens } in shares {
            let computed = self.running[sequence].cache.len();
            let was_reading = computed - tokens < self.running[sequence].job.prompt_tokens;
            let read = if was_reading { self.after_chunk(sequence) } else { Ok(()) };
            let running = &mut self.running[sequence];
            let job = &mut running.job;
            let result = match &mut job.task {
                Task::Embed(mean) => {
                    mean.add(&outputs.hidden, hidden_row, tokens);
                    hidden_row += tokens;
                    read.map(|()| None)
                }
                Task::Generate(_) if computed < job.tokens.len() => read.map(|()| None),
                Task::Generate(completion) => {
                    let logits = outputs.logits.row(logit_row);
                    logit_row += 1;
                    let tokenizer = self.engine.facts.tokenizer.as_ref();
                    read.and_then(|()| {
                        if completion.ends_empty().is_some() {
                            return Ok(None);
                        }
                        let tokenizer = tokenizer.map_err(|error| RequestError::Engine(error.to_string()))?;
                        // A constraint is others' code: what it does wrong is its request's business alone.
                        catch_unwind(AssertUnwindSafe(|| completion.push(tokenizer, logits, &job.tokens)))
                            .map_err(|panic| RequestError::Internal(super::panic_message(&*panic)))?
                            .map(Some)
                            .map_err(|error: EngineError| RequestError::Engine(error.to_string()))
                    })
                }
            };
            if !was_reading && computed.is_multiple_of(MEASURE_EVERY) {
                self.measure(sequence);
            }
            outcomes.push(Outcome { sequence, result });
        }
        outcomes
    }

    /// After a part of a prompt: what it has read is kept for others, and at its end methods rewrite it.
    fn after_chunk(&mut self, sequence: usize) -> Result<(), RequestError> {
        self.measure(sequence);
        let running = &mut self.running[sequence];
        let job = &running.job;
        let store = &mut self.engine.local.store;
        if let Task::Generate(_) = job.task
            && running.piece.is_none()
        {
            let read = &job.prompt()[..running.cache.len()];
            let kept = self.prefixes.keep(store, job.owner.as_ref(), read, &running.cache);
            running.lock = kept.or(running.lock.take());
        }
        if running.unread() > 0 {
            return Ok(());
        }
        let ended = running.cache.end_of_prompt(&self.engine.pool, store);
        ended.map_err(|error| RequestError::Engine(error.to_string()))?;
        self.measure(sequence);
        let running = &self.running[sequence];
        let (job, shape) = (&running.job, self.engine.local.store.shape());
        self.budget.remember(shape, &job.pipeline, job.prompt_tokens, running.peak_bytes);
        // Methods have given memory back.
        self.full &= job.pipeline.is_full();
        Ok(())
    }

    /// Measures the bytes that a sequence with methods takes; without, they are known.
    pub(super) fn measure(&mut self, sequence: usize) {
        let running = &mut self.running[sequence];
        if !running.job.pipeline.is_full() {
            running.bytes = running.cache.used_bytes(&self.engine.local.store);
            running.peak_bytes = running.peak_bytes.max(running.bytes);
        }
    }

    /// Tells everyone what was chosen, and ends those who are done.
    pub(super) fn publish(&mut self, outcomes: Vec<Outcome>) {
        let now = Instant::now();
        for Outcome { sequence, result } in outcomes {
            match result {
                Err(error) => self.fail(sequence, error),
                Ok(Some(chosen)) => self.publish_token(sequence, chosen, now),
                Ok(None) => self.publish_end(sequence),
            }
        }
    }

    fn publish_token(&mut self, sequence: usize, chosen: Chosen, now: Instant) {
        let Chosen { id, logprob, ended } = chosen;
        let job = &mut self.running[sequence].job;
        let Task::Generate(completion) = &mut job.task else { return };
        let text = completion.fresh_text().to_owned();
        job.tokens.push(id);
        match job.times.last_token.replace(now) {
            Some(last) => self.meters.inter_token.record(now - last),
            None => {
                job.times.first_token = Some(now);
                self.meters.first_token.record(now - job.times.arrived);
            }
        }
        self.totals.completion_tokens += 1;
        job.tell(Update::Token { id, text, logprob });
        if let Some(reason) = ended {
            self.finish(sequence, reason);
        }
    }

    /// Ends a job of which no token is wanted, once its prompt was read.
    fn publish_end(&mut self, sequence: usize) {
        let running = &self.running[sequence];
        if running.unread() > 0 {
            return;
        }
        match &running.job.task {
            Task::Embed(mean) => {
                running.job.tell(Update::Embedding(mean.mean()));
                self.finish(sequence, crate::StopReason::MaxTokens);
            }
            Task::Generate(completion) => {
                if let Some(reason) = completion.ends_empty() {
                    self.finish(sequence, reason);
                }
            }
        }
    }
}
