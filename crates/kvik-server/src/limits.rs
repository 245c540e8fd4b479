//! What one key may take: requests a minute, tokens a minute, requests at the same time.
//!
//! Rates are token buckets that hold one minute's allowance and fill evenly. A request is let in when the bucket of
//! requests holds one and the bucket of tokens is not empty; what a request costs in tokens is known when it is
//! tokenised and when it has ended, and is taken then, so that the bucket may go below nothing and the next request
//! waits until it is filled again. Over a long time nobody gets more than the rate.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{error::ApiError, keys::Caller};

/// The limits of one key; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute, those of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub concurrent_requests: Option<u64>,
}

/// Counts what the requests of one key take.
#[derive(Debug)]
pub struct Meter {
    limits: KeyLimits,
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
    running: AtomicU64,
}

impl Meter {
    /// A meter that has counted nothing yet.
    pub fn new(limits: KeyLimits) -> Self {
        let bucket = |limit: Option<u64>| limit.map(|limit| Mutex::new(Bucket::full(limit, Instant::now())));
        Self {
            limits,
            requests: bucket(limits.requests_per_minute),
            tokens: bucket(limits.tokens_per_minute),
            running: AtomicU64::new(0),
        }
    }

    /// Requests that are running.
    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    fn check(&self, now: Instant) -> Result<(), ApiError> {
        // Tokens first: looking at them takes nothing away.
        if let Some(bucket) = &self.tokens
            && let Err(wait) = lock(bucket).peek(now)
        {
            let limit = self.limits.tokens_per_minute.unwrap_or_default();
            let message = format!("this key has used its {limit} tokens a minute: wait {}", seconds(wait));
            return Err(ApiError::rate_limited(message, wait));
        }
        if let Some(bucket) = &self.requests
            && let Err(wait) = lock(bucket).take_one(now)
        {
            let limit = self.limits.requests_per_minute.unwrap_or_default();
            let message = format!("this key has made its {limit} requests a minute: wait {}", seconds(wait));
            return Err(ApiError::rate_limited(message, wait));
        }
        Ok(())
    }
}

/// A request that was let in; dropping it makes room for the next one.
#[derive(Debug)]
pub struct Admission {
    caller: Arc<Caller>,
    arrived: Instant,
}

impl Admission {
    /// Lets a request of `caller` in.
    ///
    /// # Errors
    /// 429 with the time to wait, if a limit is reached.
    pub fn new(caller: Arc<Caller>) -> Result<Self, ApiError> {
        let meter = &caller.meter;
        let before = meter.running.fetch_add(1, Ordering::Relaxed);
        // From here on dropping it counts down.
        let admission = Self { caller: Arc::clone(&caller), arrived: Instant::now() };
        if let Some(limit) = meter.limits.concurrent_requests
            && before >= limit
        {
            let message =
                format!("this key has {limit} requests running, as many as it may: wait for one to end");
            return Err(ApiError::rate_limited(message, Duration::from_secs(1)));
        }
        meter.check(Instant::now())?;
        Ok(admission)
    }

    /// Takes `tokens` from the key's allowance.
    pub fn charge(&self, tokens: usize) {
        if let Some(bucket) = &self.caller.meter.tokens {
            lock(bucket).take(tokens as f64, Instant::now());
        }
    }

    /// When the request arrived.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Who sent the request.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.caller.meter.running.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock(bucket: &Mutex<Bucket>) -> std::sync::MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn seconds(wait: Duration) -> String {
    match wait.as_secs_f64().ceil() {
        1.0 => "1 second".to_owned(),
        seconds => format!("{seconds} seconds"),
    }
}

/// An allowance that fills evenly up to what one minute gives.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    level: f64,
    seen: Instant,
}

impl Bucket {
    fn full(per_minute: u64, now: Instant) -> Self {
        Self { per_minute: per_minute as f64, level: per_minute as f64, seen: now }
    }

    fn fill(&mut self, now: Instant) {
        let minutes = now.saturating_duration_since(self.seen).as_secs_f64() / 60.0;
        self.level = (self.level + minutes * self.per_minute).min(self.per_minute);
        self.seen = self.seen.max(now);
    }

    /// Time until the level is `level`.
    fn time_to(&self, level: f64) -> Duration {
        let seconds = (level - self.level) / self.per_minute * 60.0;
        // An allowance of nothing never comes back; an hour is long enough to be told.
        Duration::from_secs_f64(if seconds.is_finite() { seconds.clamp(0.0, 3600.0) } else { 3600.0 })
    }

    fn take_one(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.level < 1.0 {
            return Err(self.time_to(1.0));
        }
        self.level -= 1.0;
        Ok(())
    }

    fn peek(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.level >= 1.0 { Ok(()) } else { Err(self.time_to(1.0)) }
    }

    fn take(&mut self, amount: f64, now: Instant) {
        self.fill(now);
        self.level -= amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_gives_its_allowance_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::full(60, start);
        let taken = |bucket: &mut Bucket, now| (0..1000).filter(|_| bucket.take_one(now).is_ok()).count();
        assert_eq!(taken(&mut bucket, start), 60);
        assert_eq!(bucket.take_one(start), Err(Duration::from_secs(1)));
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(10)), 10);
        // An hour of rest is worth one minute.
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600)), 60);
    }

    #[test]
    fn what_was_taken_too_much_is_waited_for() {
        let start = Instant::now();
        let mut bucket = Bucket::full(100, start);
        bucket.take(199.0, start);
        assert_eq!(bucket.peek(start), Err(Duration::from_secs(60)));
        assert!(bucket.peek(start + Duration::from_secs(59)).is_err());
        assert!(bucket.peek(start + Duration::from_secs(61)).is_ok());
    }

    #[test]
    fn a_request_that_ended_makes_room() {
        let limits = KeyLimits { concurrent_requests: Some(2), ..KeyLimits::default() };
        let caller = Arc::new(Caller { name: None, meter: Meter::new(limits), priority: 0 });
        let enter = || Admission::new(Arc::clone(&caller));
        let first = enter().unwrap();
        let _second = enter().unwrap();
        assert!(enter().is_err());
        drop(first);
        assert_eq!(caller.meter.running(), 1);
        assert!(enter().is_ok());
    }

    #[test]
    fn nothing_a_minute_is_refused_with_a_finite_wait() {
        let limits = KeyLimits { requests_per_minute: Some(0), ..KeyLimits::default() };
        let caller = Arc::new(Caller { name: None, meter: Meter::new(limits), priority: 0 });
        let error = Admission::new(caller).unwrap_err();
        assert_eq!(error.retry_after, Some(Duration::from_secs(3600)));
    }
}
