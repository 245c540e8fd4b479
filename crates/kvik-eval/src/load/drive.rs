//! Sending requests, on time or as fast as they are answered.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time};

use crate::client::{Ask, Exchange, Outcome, Target};

/// How often whoever watches is told.
const TICK: Duration = Duration::from_millis(100);

/// When requests are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// Each at its time.
    Open(Vec<Slot>),
    /// Each when one of the users is free.
    Closed {
        /// Requests that are under way at the same time.
        users: usize,
        /// All of them.
        requests: usize,
    },
}

/// When one request of an open loop is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// Seconds since the load began; slots are in this order.
    pub due_s: f64,
    /// What it waits for if it is a later turn of a conversation.
    pub after: Option<Turn>,
}

/// What a turn waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// The place of the turn before, which must have ended.
    pub before: usize,
    /// Seconds from there until the user has read the answer and written the next question.
    pub think_s: f64,
}

/// How far the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests that were sent.
    pub sent: usize,
    /// Those that are over.
    pub ended: usize,
    /// Those of them that have no whole answer.
    pub failed: usize,
    /// All requests.
    pub total: usize,
}

/// Sends requests to `target` at `pace`; `ask` makes the request of a number. Returns what happened to each that was sent,
/// by number. A turn that would come before the answer to the turn before, or before its user has thought about that answer,
/// is due when that is over: what the turn before took too long is not counted twice. When `progress` breaks, nothing more is
/// sent and what is under way is dropped.
pub async fn drive<T: Target>(
    target: &Arc<T>,
    pace: &Pace,
    ask: impl Fn(usize) -> Ask<T::Request>,
    began: Instant,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Vec<Exchange> {
    let (total, users) = match pace {
        Pace::Open(slots) => (slots.len(), usize::MAX),
        Pace::Closed { users, requests } => (*requests, *users),
    };
    let mut load = Load { target, began, running: JoinSet::new(), exchanges: vec![None; total] };
    // Turns whose time has come before the answer to the turn before, by the place of that one.
    let mut held: HashMap<usize, Vec<usize>> = HashMap::new();
    // Turns that wait for the end of thinking, by the time at which they are sent.
    let mut thinking: BTreeMap<(Duration, usize), Ask<T::Request>> = BTreeMap::new();
    let mut counts = Progress { sent: 0, ended: 0, failed: 0, total };
    let mut tick = time::interval(TICK);
    let mut next = 0;
    // Made before it is due, so that making it delays nothing.
    let mut made: Option<Ask<T::Request>> = None;
    while counts.ended < total {
        if next < total && made.is_none() {
            made = Some(ask(next));
        }
        let due = match pace {
            Pace::Open(slots) => slots.get(next).map(|slot| began + seconds(slot.due_s)),
            Pace::Closed { .. } => (next < total && load.running.len() < users).then_some(began),
        };
        let thought = thinking.first_key_value().map(|((at, _), _)| began + *at);
        tokio::select! {
            biased;
            () = time::sleep_until(thought.unwrap_or(began).into()), if thought.is_some() => {
                let Some(((at, number), request)) = thinking.pop_first() else { continue };
                load.send(number, request, at.as_secs_f64());
            }
            () = time::sleep_until(due.unwrap_or(began).into()), if due.is_some() => {
                let Some(request) = made.take() else { continue };
                match pace {
                    Pace::Open(slots) => {
                        let slot = slots[next];
                        match slot.after.map(|turn| (turn, load.end_s(turn.before))) {
                            Some((turn, None)) => held.entry(turn.before).or_default().push(next),
                            Some((turn, Some(end_s))) if slot.due_s < end_s + turn.think_s => {
                                drop(thinking.insert((seconds(end_s + turn.think_s), next), request));
                            }
                            _ => load.send(next, request, slot.due_s),
                        }
                    }
                    Pace::Closed { .. } => load.send(next, request, began.elapsed().as_secs_f64()),
                }
                next += 1;
            }
            Some(joined) = load.running.join_next(), if !load.running.is_empty() => {
                // A request's task neither panics nor is it cancelled while this loop runs.
                let Ok((number, exchange)) = joined else { break };
                counts.ended += 1;
                counts.failed += usize::from(!exchange.is_complete());
                let end_s = exchange.end_s;
                load.exchanges[number] = Some(exchange);
                for waiting in held.remove(&number).unwrap_or_default() {
                    let think_s = match pace {
                        Pace::Open(slots) => slots[waiting].after.map_or(0.0, |turn| turn.think_s),
                        Pace::Closed { .. } => 0.0,
                    };
                    drop(thinking.insert((seconds(end_s + think_s), waiting), ask(waiting)));
                }
            }
            _ = tick.tick() => {
                counts.sent = counts.ended + load.running.len();
                if progress(counts).is_break() {
                    break;
                }
            }
        }
    }
    load.running.abort_all();
    counts.sent = counts.ended;
    let _ = progress(counts); // it has ended anyway
    let stopped = began.elapsed().as_secs_f64();
    let mut exchanges: Vec<Exchange> = load.exchanges.into_iter().flatten().collect();
    let cut = exchanges.iter_mut().filter(|exchange| exchange.outcome == Outcome::Stopped);
    cut.for_each(|exchange| exchange.end_s = stopped);
    exchanges
}

/// Seconds since the load began, of which none are negative.
fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

/// What is under way.
struct Load<'a, T> {
    target: &'a Arc<T>,
    began: Instant,
    running: JoinSet<(usize, Exchange)>,
    /// What happened to requests that were sent; as if stopped until they are over.
    exchanges: Vec<Option<Exchange>>,
}

impl<T: Target> Load<'_, T> {
    fn send(&mut self, number: usize, ask: Ask<T::Request>, due_s: f64) {
        let (target, began) = (Arc::clone(self.target), self.began);
        self.exchanges[number] = Some(Exchange::due(due_s, began.elapsed().as_secs_f64(), ask.wanted_tokens));
        self.running.spawn(async move { (number, target.exchange(ask, began, due_s).await) });
    }

    /// When the request of this number was over, if it is.
    fn end_s(&self, number: usize) -> Option<f64> {
        let exchange = self.exchanges[number].as_ref()?;
        (exchange.outcome != Outcome::Stopped).then_some(exchange.end_s)
    }
}
