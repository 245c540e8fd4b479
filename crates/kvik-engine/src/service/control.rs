//! What the handle of a service and its thread share.

use super::status::Status;
use crate::lock::lock;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A client is told to come back after this time at least, and at most.
const RETRY_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// Flags, counters and the last snapshot.
pub(super) struct Control {
    draining: AtomicBool,
    stopping: AtomicBool,
    /// Requests that were accepted and have not ended.
    in_flight: AtomicUsize,
    /// Those of them that are being computed.
    pub(super) running: AtomicUsize,
    /// Requests that were turned away because too many waited.
    pub(super) overloaded: AtomicU64,
    next_id: AtomicU64,
    /// Microseconds between the ends of two requests, lately.
    pub(super) micros_per_request: AtomicU64,
    pub(super) started: Instant,
    /// Somebody wants to know what the service is doing.
    asked: AtomicBool,
    snapshot: Mutex<Status>,
    failure: Mutex<Option<String>>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            overloaded: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            micros_per_request: AtomicU64::new(0),
            started: Instant::now(),
            asked: AtomicBool::new(false),
            snapshot: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(super) fn stop(&self) {
        self.drain();
        self.stopping.store(true, Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.in_flight().saturating_sub(self.running.load(Relaxed))
    }

    /// When one of `waiting` places should be free.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        let each = Duration::from_micros(self.micros_per_request.load(Relaxed));
        // A tenth of the queue: whoever comes back then finds room, and the queue has not run dry.
        let time = each.saturating_mul((waiting as u32 / 10).max(1));
        time.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end())
    }

    pub(super) fn fail(&self, reason: String) {
        self.drain();
        *lock(&self.failure) = Some(reason);
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }

    /// True if somebody has looked at the last snapshot.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    pub(super) fn publish(&self, status: Status) {
        self.asked.store(false, Relaxed);
        *lock(&self.snapshot) = status;
    }

    /// The last snapshot; the loop makes another one soon.
    pub(super) fn snapshot(&self) -> Status {
        self.asked.store(true, Relaxed);
        lock(&self.snapshot).clone()
    }
}

/// Counts one request until it has ended.
pub(super) struct InFlight(Arc<Control>);

impl InFlight {
    pub(super) fn new(control: &Arc<Control>) -> Self {
        control.in_flight.fetch_add(1, Relaxed);
        Self(Arc::clone(control))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
