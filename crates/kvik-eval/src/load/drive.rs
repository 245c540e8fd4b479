//! Sending requests, on time or as fast as they are answered.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time};

use crate::client::{Ask, Exchange, Target};

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
    /// The place of a request that must have ended before: a turn waits for the answer to the last one.
    pub after: Option<usize>,
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
/// by number. When `progress` breaks, nothing more is sent and what is under way is dropped.
pub async fn drive(
    target: &Arc<Target>,
    pace: &Pace,
    ask: impl Fn(usize) -> Ask,
    began: Instant,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Vec<Exchange> {
    let (total, users) = match pace {
        Pace::Open(slots) => (slots.len(), usize::MAX),
        Pace::Closed { users, requests } => (*requests, *users),
    };
    let mut load = Load {
        target,
        began,
        running: JoinSet::new(),
        exchanges: vec![None; total],
        ended: vec![false; total],
    };
    let mut held: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut counts = Progress { sent: 0, ended: 0, failed: 0, total };
    let mut tick = time::interval(TICK);
    let mut next = 0;
    // Made before it is due, so that making it delays nothing.
    let mut made: Option<Ask> = None;
    while counts.ended < total {
        if next < total && made.is_none() {
            made = Some(ask(next));
        }
        let due = match pace {
            Pace::Open(slots) => {
                slots.get(next).map(|slot| began + Duration::from_secs_f64(slot.due_s.max(0.0)))
            }
            Pace::Closed { .. } => (next < total && load.running.len() < users).then_some(began),
        };
        tokio::select! {
            biased;
            () = time::sleep_until(due.unwrap_or(began).into()), if due.is_some() => {
                let Some(request) = made.take() else { continue };
                match pace {
                    Pace::Open(slots) => match slots[next].after.filter(|&before| !load.ended[before]) {
                        Some(before) => held.entry(before).or_default().push(next),
                        None => load.send(next, request, slots[next].due_s),
                    },
                    Pace::Closed { .. } => load.send(next, request, began.elapsed().as_secs_f64()),
                }
                next += 1;
            }
            Some(joined) = load.running.join_next(), if !load.running.is_empty() => {
                // A request's task neither panics nor is it cancelled while this loop runs.
                let Ok((number, exchange)) = joined else { break };
                counts.ended += 1;
                counts.failed += usize::from(!exchange.is_complete());
                load.ended[number] = true;
                let due_s = exchange.end_s;
                load.exchanges[number] = Some(exchange);
                for waiting in held.remove(&number).unwrap_or_default() {
                    load.send(waiting, ask(waiting), due_s);
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
    let cut = exchanges.iter_mut().filter(|exchange| exchange.outcome == crate::client::Outcome::Stopped);
    cut.for_each(|exchange| exchange.end_s = stopped);
    exchanges
}

/// What is under way.
struct Load<'a> {
    target: &'a Arc<Target>,
    began: Instant,
    running: JoinSet<(usize, Exchange)>,
    /// What happened to requests that were sent; as if stopped until they are over.
    exchanges: Vec<Option<Exchange>>,
    ended: Vec<bool>,
}

impl Load<'_> {
    fn send(&mut self, number: usize, ask: Ask, due_s: f64) {
        let (target, began) = (Arc::clone(self.target), self.began);
        self.exchanges[number] =
            Some(Exchange::due(due_s, began.elapsed().as_secs_f64(), ask.wanted_tokens()));
        self.running.spawn(async move { (number, target.exchange(ask, began, due_s).await) });
    }
}
