//! The requests of a trace, sent to whoever answers at the times of the trace.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Pace, Progress, Slot, Turn, drive, watched};
use crate::{
    client::{Exchange, Sample, Target},
    trace::{Trace, prompts::PromptWriter},
};

/// How a trace is replayed.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    /// What is asked, and when.
    pub trace: &'a Trace,
    /// What prompts are made of.
    pub prompts: PromptWriter,
    /// Whether turns wait for the answer before them.
    pub turns_wait: bool,
    /// The time between looks at the target's own counters.
    pub watch: Duration,
}

/// Sends the requests of a trace to `target` and returns what happened to each, and the target's counters meanwhile. When
/// `progress` breaks, the load is stopped.
pub async fn replay<T: Target>(
    target: &Arc<T>,
    replay: &Replay<'_>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> (Vec<Exchange>, Vec<Sample>) {
    let Replay { trace, prompts, turns_wait, watch } = replay;
    let previous = trace.previous_turns();
    let turn = |index: usize| {
        let before = previous[index].filter(|_| *turns_wait)?;
        Some(Turn { before, think_s: trace.think_s(before, index) })
    };
    let slot = |index: usize| Slot { due_s: trace.requests[index].arrival_s, after: turn(index) };
    let pace = Pace::Open((0..trace.requests.len()).map(slot).collect());
    let ask = |index: usize| {
        let tokens = u64::from(trace.requests[index].output_tokens.max(1));
        target.ask(&prompts.of(trace, index), tokens, index as u64)
    };
    let began = Instant::now();
    watched(&**target, began, *watch, drive(target, &pace, ask, began, progress)).await
}
