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

/// `trace` with the arrivals of a Poisson process of the same mean rate.
pub fn poisson_like(trace: &Trace, seed: u64) -> Trace {
    let mean = trace.span_s() / trace.requests.len().saturating_sub(1).max(1) as f64;
    let mut poisson = trace.clone();
    let mut at = 0.0;
    for (index, request) in poisson.requests.iter_mut().enumerate() {
        request.arrival_s = at;
        at -= mean * (1.0 - Draw::new(seed, "poisson", index as u64).unit()).ln();
    }
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
