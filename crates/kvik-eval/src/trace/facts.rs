//! What a trace is like, in numbers: how much, how bursty, how long, how much of it was shared.

use std::collections::HashSet;

use serde::Serialize;

use super::Trace;
use crate::statistics::percentile;

/// A trace in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// Where the trace comes from.
    pub origin: String,
    /// Requests, failed ones included.
    pub requests: usize,
    /// Those that the service did not answer.
    pub failed: usize,
    /// Seconds from the first arrival to the last.
    pub span_s: f64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// What the arrivals are rounded to, in seconds.
    pub resolution_s: f64,
    /// Standard deviation of the gaps between arrivals over their mean: 1 for a Poisson process, more when requests come
    /// in bursts.
    pub gap_cv: f64,
    /// Variance of the arrivals in a minute over their mean: 1 for a Poisson process.
    pub minute_dispersion: f64,
    /// Requests in the busiest ten seconds over the mean.
    pub peak_to_mean: f64,
    /// Tokens of the prompts.
    pub input_tokens: Lengths,
    /// Tokens of the answers that were given.
    pub output_tokens: Lengths,
    /// Conversations of two turns or more.
    pub conversations: usize,
    /// Requests that continue one, as a share of all.
    pub later_turns: f64,
    /// Prompt tokens that a cache without end could take from earlier prompts, as a share of all; `None` when the trace
    /// does not name blocks.
    pub shared_prefix: Option<f64>,
    /// Requests by service and way in.
    pub classes: Vec<(String, usize)>,
}

/// Mean, percentiles and the largest of some numbers of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten are shorter.
    pub p90: f64,
    /// All but one in a hundred are.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// The sum.
    pub total: f64,
}

impl Lengths {
    fn of(lengths: impl Iterator<Item = u32>) -> Self {
        let mut sorted: Vec<f64> = lengths.map(f64::from).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| percentile(&sorted, share).unwrap_or_default();
        let total: f64 = sorted.iter().sum();
        let mean = total / sorted.len().max(1) as f64;
        Self { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0), total }
    }
}

impl Facts {
    /// Those of `trace`.
    pub fn of(trace: &Trace) -> Self {
        let requests = &trace.requests;
        let previous = trace.previous_turns();
        let begun: HashSet<usize> = previous.iter().flatten().copied().collect();
        let conversations = begun.iter().filter(|&&index| previous[index].is_none()).count();
        let tens = counts(trace, 10.0);
        let mean_ten = requests.len() as f64 * 10.0 / trace.span_s().max(10.0);
        let class = |(index, class): (usize, &super::Class)| {
            (class.name(), requests.iter().filter(|request| usize::from(request.class) == index).count())
        };
        Self {
            origin: trace.origin.clone(),
            requests: requests.len(),
            failed: requests.iter().filter(|request| request.failed).count(),
            span_s: trace.span_s(),
            requests_per_second: trace.rate(),
            resolution_s: trace.resolution_s,
            gap_cv: variation(&trace.gaps_s()),
            minute_dispersion: dispersion(&counts(trace, 60.0)),
            peak_to_mean: tens.iter().copied().fold(0.0, f64::max) / mean_ten,
            input_tokens: Lengths::of(requests.iter().map(|request| request.input_tokens)),
            output_tokens: Lengths::of(
                requests.iter().filter(|r| !r.failed).map(|request| request.output_tokens),
            ),
            conversations,
            later_turns: previous.iter().flatten().count() as f64 / requests.len().max(1) as f64,
            shared_prefix: shared_prefix(trace),
            classes: trace.classes.iter().enumerate().map(class).collect(),
        }
    }
}

/// Arrivals in each of the whole stretches of `seconds` that the trace covers.
pub fn counts(trace: &Trace, seconds: f64) -> Vec<f64> {
    let stretches = (trace.span_s() / seconds).floor() as usize;
    let start = trace.requests.first().map_or(0.0, |request| request.arrival_s);
    let mut counts = vec![0.0; stretches];
    for request in &trace.requests {
        if let Some(count) = counts.get_mut(((request.arrival_s - start) / seconds) as usize) {
            *count += 1.0;
        }
    }
    counts
}

/// Standard deviation over mean.
fn variation(numbers: &[f64]) -> f64 {
    let (mean, variance) = moments(numbers);
    variance.sqrt() / mean
}

/// Variance over mean.
fn dispersion(numbers: &[f64]) -> f64 {
    let (mean, variance) = moments(numbers);
    variance / mean
}

/// Mean and variance.
pub(crate) fn moments(numbers: &[f64]) -> (f64, f64) {
    let count = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / count;
    (mean, numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0))
}

fn shared_prefix(trace: &Trace) -> Option<f64> {
    if trace.requests.iter().all(|request| request.blocks.is_empty()) {
        return None;
    }
    let mut seen = HashSet::new();
    let (mut shared, mut total) = (0, 0);
    for request in &trace.requests {
        let known =
            request.blocks.iter().enumerate().take_while(|&(at, &id)| seen.contains(&(at, id))).count();
        seen.extend(request.blocks.iter().copied().enumerate());
        shared += (known * trace.block_tokens).min(request.input_tokens as usize);
        total += request.input_tokens as usize;
    }
    Some(shared as f64 / total.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Class, TraceRequest};

    #[test]
    fn evenly_spaced_requests_vary_not_at_all_and_bursts_a_lot() {
        let trace = |arrivals: Vec<f64>| {
            let requests = arrivals.into_iter().map(|at| TraceRequest::plain(at, 10, 4)).collect();
            Facts::of(&Trace::new(requests, vec![Class::default()], 1, "x".into()))
        };
        let even = trace((0..1000).map(|at| f64::from(at) / 2.0).collect());
        assert!(
            even.gap_cv < 1e-9 && even.minute_dispersion < 1e-9 && (even.peak_to_mean - 1.0).abs() < 0.01
        );
        let bursts =
            trace((0..1000).map(|at| f64::from(at / 50) * 30.0 + f64::from(at % 50) * 0.01).collect());
        assert!(bursts.gap_cv > 5.0 && bursts.peak_to_mean > 2.5, "{bursts:?}");
        assert_eq!(
            (even.input_tokens.mean, even.output_tokens.total, even.shared_prefix),
            (10.0, 4000.0, None)
        );
    }

    #[test]
    fn what_is_shared_is_what_earlier_prompts_began_with() {
        let request = |at: f64, tokens, blocks: &[u64]| TraceRequest {
            blocks: blocks.into(),
            ..TraceRequest::plain(at, tokens, 1)
        };
        let requests =
            vec![request(0.0, 200, &[1, 2]), request(1.0, 250, &[1, 2, 3]), request(2.0, 200, &[9, 2])];
        let facts = Facts::of(&Trace::new(requests, vec![Class::default()], 100, "x".into()));
        assert_eq!(facts.shared_prefix, Some(200.0 / 650.0));
    }
}
