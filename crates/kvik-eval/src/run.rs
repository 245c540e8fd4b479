//! Bringing items and subjects together.
//!
//! Every item runs under every variant, the full cache first. What was done before is taken from the journal. The order
//! is item by item, so that a run which is cut off has compared all variants on what it did.
//!
//! Temporary overlays: a question whose answer is not the last thing that happens to its sequence is answered on a fork,
//! which is dropped, so that the model's own words never reach the cache that later questions see.

use std::{ops::ControlFlow, time::Instant};

use crate::{
    EvalError,
    item::{Forced, Item, Job, Mode, Turn},
    journal::{Journal, Outcome},
    statistics::{LogProbabilities, kl_divergence},
    subject::{Subject, most_likely},
    tasks::{Choice, Kit, Metric, Plan, Task},
};

mod answers;
mod followed;

/// Where the first question of a conversation stands when the method acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionPlace {
    /// At the end of the prompt, where a method that looks at the last tokens sees it (SnapKV's setting).
    WithContext,
    /// Behind the prompt: the method acts on the context alone, without knowing what will be asked.
    After,
}

impl QuestionPlace {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::WithContext => "with-context",
            Self::After => "after",
        }
    }
}

/// How items are run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The model's name, for the journal.
    pub model: String,
    /// Where first questions stand.
    pub question: QuestionPlace,
}

/// What happens while an evaluation runs.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Pairs of item and variant that are done.
    pub done: usize,
    /// All of them.
    pub total: usize,
    /// The task that is under way.
    pub task: &'a str,
    /// The variant.
    pub kv: &'a str,
}

/// Everything that one task gave.
pub struct TaskRun {
    /// The task.
    pub task: &'static dyn Task,
    /// Its items.
    pub items: Vec<Item>,
    /// `outcomes[variant][item]`, `None` where the run was stopped before.
    pub outcomes: Vec<Vec<Option<Outcome>>>,
}

/// Everything that an evaluation gave.
pub struct Run {
    /// The variants, the full cache first.
    pub variants: Vec<String>,
    /// Task by task.
    pub tasks: Vec<TaskRun>,
    /// True if everything was done.
    pub finished: bool,
}

/// A task with its items.
pub type Prepared = (&'static dyn Task, Vec<Item>);

/// Makes the items of `choices` and checks that they fit the model's context.
///
/// # Errors
/// A task cannot make its items, or an item is longer than `context_tokens`.
pub fn prepare(
    kit: &Kit<'_>,
    choices: &[Choice],
    plan: &Plan,
    context_tokens: usize,
) -> Result<Vec<Prepared>, EvalError> {
    plan.validate()?;
    let mut prepared = Vec::new();
    for choice in choices {
        let items = choice.task.items(kit, plan, &choice.parts)?;
        // The last token that is said or led needs no place in the cache, but a session may keep one free.
        if let Some(item) = items.iter().find(|item| item.longest_tokens() >= context_tokens) {
            return Err(EvalError::ContextTooShort {
                task: choice.task.name().to_owned(),
                length: item.length,
                needed: item.longest_tokens() + 1,
                holds: context_tokens,
            });
        }
        prepared.push((choice.task, items));
    }
    Ok(prepared)
}

/// Runs `prepared` items under every variant of `subject`; `on_progress` may break to stop between items.
///
/// # Errors
/// Whatever stops the model or the journal. What was done until then is in the journal.
pub fn run<S: Subject>(
    subject: &mut S,
    kit: &Kit<'_>,
    prepared: Vec<(&'static dyn Task, Vec<Item>)>,
    settings: &Settings,
    journal: &mut Journal,
    on_progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<Run, EvalError> {
    let variants = subject.variants().to_vec();
    let total = prepared.iter().map(|(_, items)| items.len()).sum::<usize>() * variants.len();
    let mut done = 0;
    let mut run = Run { variants: variants.clone(), tasks: Vec::new(), finished: true };
    for (task, items) in prepared {
        let mut outcomes: Vec<Vec<Option<Outcome>>> = vec![vec![None; items.len()]; variants.len()];
        'items: for (index, item) in items.iter().enumerate() {
            if !run.finished {
                break;
            }
            let blank = |kv: &str| Outcome::blank(task.name(), item, kv, settings);
            for (kv, outcomes) in variants.iter().zip(&mut outcomes) {
                outcomes[index] = journal.find(&blank(kv)).cloned();
            }
            // The full cache's distributions, needed while any other variant lacks its own.
            let compares = task.metric() == Metric::Divergence && outcomes.iter().any(|o| o[index].is_none());
            let mut yardstick: Option<Vec<LogProbabilities>> = None;
            for (variant, kv) in variants.iter().enumerate() {
                if on_progress(Progress { done, total, task: task.name(), kv }).is_break() {
                    run.finished = false;
                    break 'items;
                }
                if outcomes[variant][index].is_none() || (compares && variant == 0) {
                    let mut outcome = blank(kv);
                    let mut attempt = Attempt { subject, kit, variant, kv, outcome: &mut outcome };
                    match &item.job {
                        Job::Answer { mode, turns } => {
                            attempt.answer(&item.context, *mode, turns, settings.question)?;
                        }
                        Job::Force(forced) => {
                            let followed =
                                attempt.follow(&item.context, forced, yardstick.as_deref(), compares)?;
                            yardstick = yardstick.or(followed);
                        }
                    }
                    if outcomes[variant][index].is_none() {
                        journal.add(&outcome)?;
                        outcomes[variant][index] = Some(outcome);
                    }
                }
                done += 1;
            }
        }
        run.tasks.push(TaskRun { task, items, outcomes });
    }
    Ok(run)
}

/// One item under one variant.
struct Attempt<'a, S: Subject> {
    subject: &'a mut S,
    kit: &'a Kit<'a>,
    variant: usize,
    kv: &'a str,
    outcome: &'a mut Outcome,
}

impl<S: Subject> Attempt<'_, S> {
    /// A sequence of `tokens`; its time and memory are noted.
    fn prefill(&mut self, tokens: &[u32]) -> Result<S::Sequence, EvalError> {
        let start = Instant::now();
        let sequence = self.subject.prefill(self.variant, tokens)?;
        let usage = &mut self.outcome.usage;
        usage.prefill_seconds += start.elapsed().as_secs_f64();
        usage.prefill_tokens += tokens.len();
        usage.kv_bytes = self.subject.kv_bytes(&sequence);
        usage.kv_file_bytes = self.subject.kv_file_bytes(&sequence);
        Ok(sequence)
    }

    fn append(&mut self, sequence: &mut S::Sequence, tokens: &[u32]) -> Result<(), EvalError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.subject.append(sequence, tokens)?;
        self.outcome.usage.append_seconds += start.elapsed().as_secs_f64();
        self.outcome.usage.append_tokens += tokens.len();
        Ok(())
    }

    fn decode(&mut self, sequence: &mut S::Sequence, token: u32) -> Result<(), EvalError> {
        let start = Instant::now();
        self.subject.decode(sequence, token)?;
        self.outcome.usage.decode_seconds += start.elapsed().as_secs_f64();
        self.outcome.usage.decode_tokens += 1;
        Ok(())
    }

    fn no_finite_logit(&self) -> EvalError {
        EvalError::NoFiniteLogit { kv: self.kv.to_owned() }
    }
}
