//! How well a twin hits what it was fitted to.
//!
//! Each property of a load is a sample of numbers on both sides, held together by the two-sample test of Kolmogorov and
//! Smirnov. For what has to do with arrivals there stands a third, wrong, side: a Poisson process of the same mean rate,
//! which is what load generators usually send.

use serde::Serialize;

use crate::{
    draw::Draw,
    statistics::{TwoSample, kolmogorov_smirnov},
    trace::{Trace, facts::counts},
};

/// One property on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The property.
    pub what: &'static str,
    /// Numbers in the trace.
    pub numbers: usize,
    /// Their mean.
    pub mean: f64,
    /// The mean of the twin's.
    pub twin_mean: f64,
    /// The test of trace and twin.
    pub twin: TwoSample,
    /// The test of trace and Poisson process.
    pub poisson: Option<TwoSample>,
}

/// A sample of numbers that a trace is.
type Property = fn(&Trace) -> Vec<f64>;

/// `trace` with the arrivals of a Poisson process: the same requests in the same order, from the same first to the same last
/// moment, so that the mean rate is the same to the last digit. Given both, the gaps of such a process are exponential ones
/// divided by their sum.
#[must_use]
pub fn poisson_like(trace: &Trace, seed: u64) -> Trace {
    let (first, span_s) = (trace.requests.first().map_or(0.0, |request| request.arrival_s), trace.span_s());
    let mut poisson = trace.clone();
    let mut passed = 0.0;
    let arrivals: Vec<f64> = (0..poisson.requests.len())
        .map(|index| {
            let at = passed;
            passed -= (1.0 - Draw::new(seed, "poisson", index as u64).unit()).ln();
            at
        })
        .collect();
    let all = arrivals.last().copied().unwrap_or_default().max(f64::MIN_POSITIVE);
    for (request, at) in poisson.requests.iter_mut().zip(arrivals) {
        request.arrival_s = first + span_s * at / all;
    }
    poisson.resolution_s = 0.0;
    poisson.origin = format!("Poisson process at the rate of {}", trace.origin);
    poisson
}

/// `trace` and its `twin`, property by property; those that one side lacks are left out.
pub fn compare(trace: &Trace, twin: &Trace, seed: u64) -> Vec<Comparison> {
    let poisson = poisson_like(trace, seed);
    let properties: [(&'static str, bool, Property); 7] = [
        ("gap between arrivals, s", true, Trace::gaps_s),
        ("arrivals in 10 s", true, |trace| counts(trace, 10.0)),
        ("arrivals in 60 s", true, |trace| counts(trace, 60.0)),
        ("prompt, tokens", false, |trace| trace.requests.iter().map(|r| f64::from(r.input_tokens)).collect()),
        ("answer, tokens", false, |trace| {
            trace.requests.iter().filter(|r| !r.failed).map(|r| f64::from(r.output_tokens)).collect()
        }),
        ("turns of conversations", false, turns),
        ("seconds to the next turn", false, intervals),
    ];
    let row = |(what, arrivals, of): (&'static str, bool, Property)| {
        let (left, right) = (of(trace), of(twin));
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
        Some(Comparison {
            what,
            numbers: left.len(),
            mean: mean(&left),
            twin_mean: mean(&right),
            twin: kolmogorov_smirnov(&left, &right)?,
            poisson: if arrivals { kolmogorov_smirnov(&left, &of(&poisson)) } else { None },
        })
    };
    properties.into_iter().filter_map(row).collect()
}

/// Turns of the conversations that have more than one.
fn turns(trace: &Trace) -> Vec<f64> {
    let mut turns = std::collections::BTreeMap::new();
    trace
        .requests
        .iter()
        .filter_map(|request| request.session)
        .for_each(|id| *turns.entry(id).or_insert(0.0) += 1.0);
    turns.into_values().filter(|&count| count > 1.0).collect()
}

fn intervals(trace: &Trace) -> Vec<f64> {
    let since = |(index, before): (usize, Option<usize>)| {
        Some(trace.requests[index].arrival_s - trace.requests[before?].arrival_s)
    };
    trace.previous_turns().into_iter().enumerate().filter_map(since).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Class, TraceRequest, facts::Facts};

    #[test]
    fn a_poisson_process_has_the_requests_and_the_rate_and_none_of_the_bursts() {
        let request = |n: u32| {
            TraceRequest::plain(5.0 + f64::from(n / 50) * 30.0 + f64::from(n % 50) * 0.01, n + 1, n % 7 + 1)
        };
        let trace = Trace::new((0..2000).map(request).collect(), vec![Class::default()], 1, "x".into());
        let poisson = poisson_like(&trace, 1);
        let lengths = |trace: &Trace| -> Vec<(u32, u32)> {
            trace.requests.iter().map(|r| (r.input_tokens, r.output_tokens)).collect()
        };
        assert_eq!(lengths(&poisson), lengths(&trace));
        assert!((poisson.rate() / trace.rate() - 1.0).abs() < 1e-12 && poisson.requests[0].arrival_s == 5.0);
        assert!(poisson.requests.is_sorted_by(|a, b| a.arrival_s <= b.arrival_s));
        let (even, bursts) = (Facts::of(&poisson).gap_cv, Facts::of(&trace).gap_cv);
        // The deviation of the coefficient of variation of 2000 exponential gaps is 0.022.
        assert!((even - 1.0).abs() < 0.1 && bursts > 5.0, "{even} {bursts}");
        assert_ne!(poisson_like(&trace, 2).requests, poisson.requests);
    }
}
