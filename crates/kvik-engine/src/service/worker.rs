//! The loop: receive, schedule, forward, sample, publish.
//!
//! One thread owns the engine and all caches and runs this loop; it shares nothing with those who wait but channels and counters.
//! The verbs are in rooms of their own: [`schedule`](Worker::schedule) in `admission`, the other three in `step`.

use super::{
    control::Control,
    fairness::Ledger,
    job::{Job, Running, Task},
    memory::Budget,
    moved::Mover,
    options::ServiceOptions,
    pace::Pace,
    request::{RequestError, Update},
    status::{Batch, EncodingStatus, KvStatus, Meter, OwnerStatus, PipelineStatus, Status, Totals},
};
use crate::{
    engine::Engine,
    error::EngineError,
    generate::StopReason,
    prefix::{PrefixCache, PrefixOptions, Report},
    score,
};
use kvik_kv::{CacheError, KvStore, SpillFile};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// Snapshots are this far apart while there is work, and while somebody looks at them.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(500);
const SNAPSHOT_WHEN_ASKED: Duration = Duration::from_millis(20);
/// How long to wait for a prefix that is read from a disk, or for a disk that is busy, before looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What prefixes may take to be written when the service ends.
const FAREWELL: Duration = Duration::from_secs(5);

/// What reaches the loop.
pub(super) enum Command {
    /// A request.
    Submit(Box<Job>),
    /// There is something to look at: a flag, a prefix that was read.
    Wake,
}

/// The loop and all that it owns.
pub(super) struct Worker {
    pub(super) engine: Engine,
    pub(super) options: ServiceOptions,
    pub(super) control: Arc<Control>,
    pub(super) inbox: Receiver<Command>,
    pub(super) report: Report,
    pub(super) prefixes: PrefixCache,
    /// Where the caches of those who give way go, if there is a folder for them.
    pub(super) mover: Option<Mover>,
    pub(super) budget: Budget,
    pub(super) pace: Pace,
    pub(super) ledger: Ledger,
    pub(super) waiting: Vec<Job>,
    pub(super) running: Vec<Running>,
    /// There was no room for whoever is next, and nothing has been given back since.
    pub(super) full: bool,
    /// Nothing could be computed in the last round.
    pub(super) idle_round: bool,
    pub(super) totals: Totals,
    pub(super) last_step: Batch,
    pub(super) meters: Meters,
    last_snapshot: Instant,
    last_end: Instant,
    /// Prefixes were looked after since there was work.
    rested: bool,
}

/// What is measured.
#[derive(Default)]
pub(super) struct Meters {
    pub(super) step: Meter,
    pub(super) inter_token: Meter,
    pub(super) first_token: Meter,
    pub(super) queue: Meter,
}

impl Worker {
    /// Takes over `engine`; `wake` makes the loop look around.
    ///
    /// # Errors
    /// [`EngineError`] if there is no address space for the budget, or prefixes cannot be kept as asked.
    pub(super) fn new(
        mut engine: Engine,
        options: ServiceOptions,
        control: Arc<Control>,
        inbox: Receiver<Command>,
        report: Report,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, EngineError> {
        let budget_bytes = options.budget_bytes();
        let step_tokens = options.step_tokens.max(engine.prefill_chunk_tokens).max(score::MAX_CHUNK_TOKENS);
        engine.local.store = store_for(&engine, budget_bytes, step_tokens)?;
        let prefix_options = PrefixOptions {
            sharing: options.prefix_sharing,
            block_tokens: options.block_tokens,
            max_bytes: budget_bytes,
            kv_dir: options.kv_dir.clone(),
        };
        let tokenizer = engine.facts.tokenizer.as_ref().ok();
        let wake: Arc<dyn Fn() + Send + Sync> = wake.into();
        let wakes = || {
            let wake = Arc::clone(&wake);
            Box::new(move || wake())
        };
        let prefixes =
            PrefixCache::new(&prefix_options, &engine.local.store, tokenizer, Arc::clone(&report), wakes())?;
        let mover = options.spill_dir.as_ref().map(|folder| {
            // A folder that cannot be used is better known now.
            SpillFile::in_folder(folder).map_err(CacheError::from)?;
            Mover::start(folder.clone(), Arc::clone(&report), wakes()).map_err(EngineError::Thread)
        });
        let now = Instant::now();
        Ok(Self {
            engine,
            options,
            control,
            inbox,
            report,
            prefixes,
            mover: mover.transpose()?,
            budget: Budget::new(budget_bytes, step_tokens),
            pace: Pace::default(),
            ledger: Ledger::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            full: false,
            idle_round: false,
            totals: Totals::default(),
            last_step: Batch::default(),
            meters: Meters::default(),
            last_snapshot: now,
            last_end: now,
            rested: false,
        })
    }

    /// Computes until the service is stopped.
    pub(super) fn run(&mut self) {
        self.snapshot();
        while self.receive() {
            self.step();
        }
        self.prefixes.finish(&mut self.engine.local.store, FAREWELL);
        self.snapshot();
    }

    /// One forward pass, and what belongs to it.
    pub(super) fn step(&mut self) {
        let start = Instant::now();
        let step = self.schedule();
        if let Some(outputs) = self.forward(&step) {
            let chosen = self.sample(&step, &outputs);
            self.publish(chosen);
        }
        self.settle(start);
    }

    /// Takes in what has come, waiting for it if there is nothing else to do, and lets go whoever is not waited for any more. False
    /// if the service is to end.
    pub(super) fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            let pause = self.rest();
            match pause.map(|pause| self.inbox.recv_timeout(pause)) {
                None => match self.inbox.recv() {
                    Ok(command) => self.take(command),
                    Err(_) => return false,
                },
                Some(Ok(command)) => self.take(command),
                Some(Err(RecvTimeoutError::Timeout)) => {}
                Some(Err(RecvTimeoutError::Disconnected)) => return false,
            }
        } else if self.idle_round
            && let Ok(command) = self.inbox.recv_timeout(LOOK_AGAIN)
        {
            self.take(command);
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.take(command);
        }
        self.prefixes.poll(&mut self.engine.local.store);
        if self.control.is_stopping() {
            self.end_all(&RequestError::Stopped);
            return false;
        }
        self.let_go();
        true
    }

    fn take(&mut self, command: Command) {
        let Command::Submit(mut job) = command else { return };
        self.rested = false;
        self.totals.requests += 1;
        self.ledger.enter(&job.owner);
        if let Task::Generate(_) = job.task {
            let store = &self.engine.local.store;
            job.loading = self.prefixes.prepare(store, job.owner.as_ref(), &job.pipeline, job.prompt());
        }
        self.waiting.push(*job);
    }

    /// Drops jobs that nobody waits for and those whose time is over.
    fn let_go(&mut self) {
        let now = Instant::now();
        let gone = |job: &Job| job.is_abandoned() || job.is_overdue(now);
        for mut job in self.waiting.extract_if(.., |job| gone(job)) {
            // It may be the one that there was no room for.
            self.full = false;
            self.ledger.leave(&job.owner);
            if job.is_abandoned() {
                self.totals.cancelled += 1;
                continue;
            }
            self.totals.overdue += 1;
            if job.times.admitted.is_some() {
                job.conclude(StopReason::Deadline);
            } else {
                job.tell(Update::Failed(RequestError::Deadline));
            }
        }
        for index in 0..self.running.len() {
            let job = &self.running[index].job;
            if job.is_abandoned() {
                self.totals.cancelled += 1;
                self.end(index);
            } else if job.is_overdue(now) {
                self.finish(index, StopReason::Deadline);
            }
        }
        self.drop_ended();
    }

    /// Counts a job as ended. [`Self::drop_ended`] drops it.
    pub(super) fn end(&mut self, index: usize) {
        let running = &mut self.running[index];
        running.ended = true;
        self.ledger.leave(&running.job.owner);
        let now = Instant::now();
        let micros = now.duration_since(self.last_end).as_micros() as u64;
        self.last_end = now;
        let mean = self.control.micros_per_request.load(Relaxed);
        let mean = if mean == 0 { micros } else { (7 * mean + micros) / 8 };
        self.control.micros_per_request.store(mean, Relaxed);
    }

    /// Says that a running job is done.
    pub(super) fn finish(&mut self, index: usize, reason: StopReason) {
        match reason {
            StopReason::Deadline => self.totals.overdue += 1,
            _ => self.totals.finished += 1,
        }
        self.running[index].job.conclude(reason);
        self.end(index);
    }

    /// Says that a running job cannot be done.
    pub(super) fn fail(&mut self, index: usize, error: RequestError) {
        self.running[index].job.tell(Update::Failed(error));
        self.totals.failed += 1;
        self.end(index);
    }

    /// Gives back the memory of those that have ended.
    pub(super) fn drop_ended(&mut self) {
        let before = self.running.len();
        self.running.retain(|running| !running.ended);
        if self.running.len() < before {
            self.full = false;
            self.engine.local.store.reclaim();
        }
        self.control.running.store(self.running.len(), Relaxed);
    }

    /// Ends everything, for `reason`.
    pub(super) fn end_all(&mut self, reason: &RequestError) {
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Submit(job) = command {
                job.tell(Update::Failed(reason.clone()));
            }
        }
        for job in self.waiting.drain(..).chain(self.running.drain(..).map(|running| running.job)) {
            self.totals.failed += 1;
            job.tell(Update::Failed(reason.clone()));
        }
        self.control.running.store(0, Relaxed);
    }

    /// Uses a moment without work: hands prefixes to the disk, then checks that they add up and gives free memory back. Returns how
    /// long it may last; `None` until something comes.
    fn rest(&mut self) -> Option<Duration> {
        let store = &mut self.engine.local.store;
        if self.prefixes.idle(store) {
            return Some(Duration::ZERO);
        }
        if !self.rested {
            self.rested = true;
            if let Err(defect) = self.prefixes.check(store) {
                (self.report)(&format!("the prefix tree is damaged and was emptied: {defect}"));
                self.prefixes.forget(store);
            }
            store.trim();
            self.last_step = Batch::default();
            self.snapshot();
        }
        // A disk that was busy is asked again.
        self.options.kv_dir.is_some().then_some(LOOK_AGAIN.saturating_mul(10))
    }

    /// Ends a round that began at `start`.
    fn settle(&mut self, start: Instant) {
        let now = Instant::now();
        if !self.idle_round {
            self.meters.step.record(now - start);
            self.pace.record(self.last_step, (now - start).as_secs_f64());
        }
        self.drop_ended();
        let every = if self.control.is_asked() { SNAPSHOT_WHEN_ASKED } else { SNAPSHOT_EVERY };
        if now - self.last_snapshot >= every {
            self.snapshot();
        }
    }

    /// Bytes of RAM that keys and values take.
    pub(super) fn used_bytes(&self) -> usize {
        self.engine.local.store.used_bytes()
    }

    /// Publishes what the service is doing.
    pub(super) fn snapshot(&mut self) {
        self.last_snapshot = Instant::now();
        let store = &self.engine.local.store;
        let mut owners: BTreeMap<Option<&str>, OwnerStatus> = BTreeMap::new();
        for (owner, account) in self.ledger.accounts() {
            let status = owners.entry(owner.as_deref()).or_default();
            status.owner = owner.as_deref().map(str::to_owned);
            status.served_tokens = account.tokens;
        }
        let mut pipelines: BTreeMap<String, PipelineStatus> = BTreeMap::new();
        for running in &self.running {
            owners.entry(running.job.owner.as_deref()).or_default().running += 1;
            let pipeline = running.job.pipeline.to_string();
            let status = pipelines.entry(pipeline.clone()).or_default();
            status.pipeline = pipeline;
            status.sequences += 1;
            status.tokens += running.cache.len();
            status.ram_bytes += running.cache.used_bytes(store);
            status.file_bytes += running.cache.file_bytes(store);
            status.uncompressed_bf16_bytes += store.shape().bf16_bytes(running.cache.len());
        }
        for job in &self.waiting {
            owners.entry(job.owner.as_deref()).or_default().waiting += 1;
        }
        let moved = self.waiting.iter().filter_map(|job| job.moved.as_ref());
        let moved_bytes: usize = moved.map(|moved| moved.image.file_bytes()).sum();
        let moved = (moved_bytes > 0).then(|| EncodingStatus::moved(moved_bytes));
        let encodings = store.bytes_by_encoding().into_iter().map(EncodingStatus::from);
        let status = Status {
            running: self.running.len(),
            owners: owners.into_values().collect(),
            last_step: self.last_step,
            pace: self.pace.status(),
            kv: KvStatus {
                budget_bytes: self.budget.bytes,
                ram_bytes: store.used_bytes(),
                file_bytes: store.file_bytes() + moved_bytes,
                encodings: encodings.chain(moved).collect(),
                pipelines: pipelines.into_values().collect(),
            },
            prefixes: self.prefixes.statistics(),
            prefix_trees: self.prefixes.trees(self.control.started),
            totals: self.totals,
            step_seconds: self.meters.step.distribution(),
            inter_token_seconds: self.meters.inter_token.distribution(),
            time_to_first_token_seconds: self.meters.first_token.distribution(),
            queue_seconds: self.meters.queue.distribution(),
            ..Status::default()
        };
        self.control.publish(status);
    }
}

/// A store whose address space holds the budget and some more: what is rewritten stands beside its new form for a moment.
fn store_for(engine: &Engine, budget_bytes: usize, step_tokens: usize) -> Result<KvStore, EngineError> {
    let context_tokens = engine.context_tokens();
    let shape = engine.kv_shape();
    let whole = shape.block_bytes(context_tokens, step_tokens).max(1);
    let sequences = (budget_bytes + budget_bytes / 4).div_ceil(whole) + 2;
    Ok(KvStore::new(shape.clone(), sequences, context_tokens, step_tokens)?)
}
