//! Serving: many requests, one engine, one loop.
//!
//! A [`Service`] owns an [`Engine`] and the thread that runs it. The loop reads like its name: receive what has come, schedule who
//! gets how many tokens of the next forward pass, forward them all at once, sample, publish. Whoever submits a [`Request`] holds a
//! [`Reply`], and drops it to cancel.
//!
//! What a request's answer is does not depend on what else is in the batch, on how its prompt was cut, on prefixes that others
//! left, or on whether it had to give its memory away and was moved to a file or computed again: greedy answers are those of
//! [`Engine::generate`], to the bit.
//!
//! The rooms, in the order in which a request passes them: `request` what is asked and what is heard; `control` what both sides
//! of the thread share; `job` a request inside; `worker` the loop; `admission` who runs and who gives way; `plan` who gets how
//! many tokens, a pure function; `pace` how many tokens of prompts a step may read; `fairness` what owners were served; `memory`
//! what requests will need; `moved` the caches of those who gave way; `step` the pass and the sampling; `status` what can be seen
//! from outside.

mod admission;
mod control;
mod fairness;
mod job;
mod memory;
mod moved;
mod options;
mod pace;
mod plan;
mod request;
mod status;
mod step;
mod worker;

pub use options::ServiceOptions;
pub use request::{Reply, Request, RequestError, RequestId, SubmitError, Timings, Update, Usage};
pub use status::{
    BUCKET_SECONDS, Batch, Distribution, EncodingStatus, KvStatus, OwnerStatus, PaceStatus, PipelineStatus,
    Status, Totals,
};

use crate::{
    engine::Engine,
    error::EngineError,
    facts::EngineFacts,
    generate::{Completion, CompletionOptions},
    lock::lock,
    prefix::Report,
    sampling::Steering,
    session::check_vocabulary,
};
use control::{Control, InFlight};
use job::{Job, MeanState, Task, Times};
use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::Ordering::Relaxed,
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use worker::{Command, Worker};

/// How often [`Service::stop`] looks whether all is done.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// An engine that serves many requests at once.
pub struct Service {
    facts: Arc<EngineFacts>,
    control: Arc<Control>,
    inbox: Sender<Command>,
    max_waiting: usize,
    budget_bytes: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Service {
    /// Starts the thread that serves with `engine`.
    ///
    /// # Errors
    /// [`EngineError`] if the options mean nothing, there is no address space for the memory that they ask for, or the folder of
    /// prefixes cannot be used.
    pub fn start(engine: Engine, options: ServiceOptions) -> Result<Self, EngineError> {
        Self::start_reporting(engine, options, Arc::new(|_| {}))
    }

    /// As [`Self::start`]; `report` hears sentences about what goes wrong and is worked around.
    ///
    /// # Errors
    /// As for [`Self::start`].
    pub fn start_reporting(
        engine: Engine,
        mut options: ServiceOptions,
        report: Report,
    ) -> Result<Self, EngineError> {
        if options.max_running == 0 || options.step_tokens <= options.max_running {
            let (step_tokens, max_running) = (options.step_tokens, options.max_running);
            return Err(EngineError::Step { step_tokens, max_running });
        }
        let budget_bytes = options.budget_bytes();
        options.kv_budget_bytes = Some(budget_bytes);
        let (facts, control, max_waiting) =
            (Arc::clone(engine.facts()), Arc::new(Control::new()), options.max_waiting);
        let (sender, inbox) = channel();
        let waker = sender.clone();
        let wake = Box::new(move || drop(waker.send(Command::Wake)));
        let worker_report = Arc::clone(&report);
        let mut worker = Worker::new(engine, options, Arc::clone(&control), inbox, worker_report, wake)?;
        let of_thread = Arc::clone(&control);
        let run = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
                let reason = panic_message(&*panic);
                report(&format!("the service has failed and computes nothing any more: {reason}"));
                of_thread.fail(reason.clone());
                worker.end_all(&RequestError::Internal(reason));
            }
        };
        let thread = thread::Builder::new().name("kvik-service".to_owned()).spawn(run);
        let thread = thread.map_err(EngineError::Thread)?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { facts, control, inbox: sender, max_waiting, budget_bytes, thread })
    }

    /// Takes a request. Never waits.
    ///
    /// # Errors
    /// [`SubmitError`] if it makes no sense, cannot fit, or there is too much to do.
    pub fn submit(&self, request: Request) -> Result<Reply, SubmitError> {
        if let Some(failure) = self.control.failure() {
            return Err(SubmitError::Unhealthy(failure));
        }
        if self.control.is_draining() {
            return Err(SubmitError::Draining);
        }
        let waiting = self.control.waiting();
        if waiting >= self.max_waiting {
            self.control.overloaded.fetch_add(1, Relaxed);
            return Err(SubmitError::Overloaded { retry_after: self.control.retry_after(waiting) });
        }
        let in_flight = InFlight::new(&self.control);
        let id = RequestId(self.control.next_id());
        let (updates, receiver) = tokio::sync::mpsc::unbounded_channel();
        let job = self.job(id, request, updates, in_flight)?;
        self.inbox.send(Command::Submit(Box::new(job))).map_err(|_| SubmitError::Draining)?;
        Ok(Reply { id, updates: receiver, ended: false })
    }

    /// Checks a request, and makes all that can be made of it without the engine.
    fn job(
        &self,
        id: RequestId,
        request: Request,
        updates: tokio::sync::mpsc::UnboundedSender<Update>,
        in_flight: InFlight,
    ) -> Result<Job, SubmitError> {
        let facts = &*self.facts;
        let invalid = |error: EngineError| SubmitError::Invalid(error.to_string());
        let mut tokens = request.prompt;
        let context_tokens = facts.context_tokens;
        let answers = usize::from(!request.want_hidden);
        if tokens.len() + answers > context_tokens {
            return Err(SubmitError::TooLong { prompt_tokens: tokens.len(), context_tokens });
        }
        check_vocabulary(&tokens, facts.vocabulary).map_err(invalid)?;
        if tokens.is_empty() {
            let beginning = facts.tokenizer.as_ref().ok().and_then(|tokenizer| tokenizer.bos());
            tokens.push(beginning.ok_or_else(|| invalid(EngineError::EmptyPrompt))?);
        }
        let prompt_tokens = tokens.len();
        request.pipeline.methods(&facts.kv_shape).map_err(|error| invalid(error.into()))?;
        // At least: however small the steps are.
        let needed_bytes = facts.kv_shape.block_bytes(prompt_tokens, 1);
        if request.pipeline.is_full() && needed_bytes > self.budget_bytes {
            return Err(SubmitError::TooLarge { needed_bytes, budget_bytes: self.budget_bytes });
        }
        let task = if request.want_hidden {
            if !request.pipeline.is_full() {
                let message = "an embedding is of the whole prompt: leave the pipeline out";
                return Err(SubmitError::Invalid(message.to_owned()));
            }
            Task::Embed(MeanState::default())
        } else {
            if let Err(error) = &facts.tokenizer {
                return Err(invalid(Arc::clone(error).into()));
            }
            let steering = Steering {
                frequency_penalty: request.frequency_penalty,
                presence_penalty: request.presence_penalty,
                logit_bias: request.logit_bias,
                min_tokens: request.min_tokens,
            };
            steering.validate(facts.vocabulary).map_err(|error| invalid(error.into()))?;
            let options = CompletionOptions {
                max_tokens: request.max_tokens,
                sampling: request.sampling,
                steering,
                stop: request.stop,
                logprobs: request.logprobs,
                ignore_end_of_text: request.ignore_end_of_text,
                mask: request.constraint,
            };
            let completion = Completion::new(options, prompt_tokens, context_tokens, facts.vocabulary);
            Task::Generate(Box::new(completion.map_err(invalid)?))
        };
        Ok(Job {
            id,
            owner: request.owner,
            priority: request.priority,
            deadline: request.deadline,
            pipeline: request.pipeline,
            tokens,
            prompt_tokens,
            task,
            updates,
            loading: None,
            moved: None,
            paid_tokens: 0,
            cached_tokens: 0,
            times: Times { arrived: Instant::now(), admitted: None, first_token: None, last_token: None },
            preemptions: 0,
            _in_flight: in_flight,
        })
    }

    /// What the service is doing. While it works, what the loop knows is up to half a second old, or a step if asked
    /// again.
    pub fn status(&self) -> Status {
        let mut status = self.control.snapshot();
        status.failure = self.control.failure();
        status.healthy = status.failure.is_none();
        status.draining = self.control.is_draining();
        status.uptime_seconds = self.control.started.elapsed().as_secs_f64();
        status.running = self.control.running.load(Relaxed);
        status.waiting = self.control.waiting();
        status.totals.overloaded = self.control.overloaded.load(Relaxed);
        status
    }

    /// What is known of the model.
    pub fn shared(&self) -> &EngineFacts {
        &self.facts
    }

    /// Takes no new requests from now on. Those that were accepted are done.
    pub fn drain(&self) {
        self.control.drain();
    }

    /// Drains, and ends what is not done within `grace`, and the thread. Returns when it has ended.
    pub fn stop(&self, grace: Duration) {
        self.drain();
        let end = Instant::now() + grace;
        while self.control.in_flight() > 0 && Instant::now() < end {
            thread::sleep(LOOK_EVERY);
        }
        self.control.stop();
        let _ = self.inbox.send(Command::Wake);
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            // A panic was told to everyone already.
            let _ = thread.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// What a panic says.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests;
