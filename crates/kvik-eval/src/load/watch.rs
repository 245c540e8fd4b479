//! The own counters of whoever is under load, over time.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use tokio::time;

use crate::client::{Sample, Target};

/// Kvik's counters are made anew soon after somebody has looked at them: at the end they are looked at twice, so much apart.
const AGAIN: Duration = Duration::from_millis(100);

/// Waits for `load`, looks at the counters of `target` every `interval` meanwhile and once more behind it, and returns what
/// came of the load and what was seen. Times count from `began`.
pub async fn watched<T: Target, R>(
    target: &T,
    began: Instant,
    interval: Duration,
    load: impl Future<Output = R>,
) -> (R, Vec<Sample>) {
    let mut samples = Vec::new();
    let result = tokio::select! {
        biased;
        result = load => result,
        never = watch(target, began, interval, &mut samples) => match never {},
    };
    if target.sample(began).await.is_some() {
        time::sleep(AGAIN).await;
        samples.extend(target.sample(began).await);
    }
    (result, samples)
}

async fn watch<T: Target>(
    target: &T,
    began: Instant,
    interval: Duration,
    samples: &mut Vec<Sample>,
) -> Infallible {
    let mut tick = time::interval(interval);
    tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        samples.extend(target.sample(began).await);
    }
}
