//! A model of a workload from a trace.

use super::{
    ClassModel, Failures, GapLaw, Label, LengthLaw, Lengths, Turns, WorkloadModel, arrivals::fit_windows,
    failures::loads,
};
use crate::trace::{Trace, TraceError, TraceRequest};

/// Requests that a model is fitted to, at least.
const LEAST_REQUESTS: usize = 32;

/// How to describe what is in the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// Seconds of a window with one rate and one burstiness.
    pub window_s: f64,
    /// How gaps are described.
    pub gaps: GapLaw,
    /// How lengths are.
    pub lengths: LengthLaw,
}

impl Default for FitOptions {
    /// Windows of a minute, as the paper has them.
    fn default() -> Self {
        Self { window_s: 60.0, gaps: GapLaw::Gamma, lengths: LengthLaw::Table }
    }
}

/// The model of the load in `trace`, whose arrivals must not be rounded: [spread](Trace::spread) them first.
///
/// # Errors
/// The trace has fewer than 32 requests, or all arrive at once.
pub fn fit(trace: &Trace, options: FitOptions) -> Result<WorkloadModel, TraceError> {
    let requests = trace.requests.len();
    let span_s = trace.span_s();
    if requests < LEAST_REQUESTS || span_s <= 0.0 {
        return Err(TraceError::TooSmall { origin: trace.origin.clone(), requests, needed: LEAST_REQUESTS });
    }
    let start = trace.requests[0].arrival_s;
    let arrivals: Vec<f64> = trace.requests.iter().map(|request| request.arrival_s - start).collect();
    let loads = loads(&arrivals);
    let previous = trace.previous_turns();
    let mut classes = Vec::new();
    for (number, class) in trace.classes.iter().enumerate() {
        let places: Vec<usize> =
            (0..requests).filter(|&index| usize::from(trace.requests[index].class) == number).collect();
        if places.is_empty() {
            continue;
        }
        // A conversation that changes its class begins anew there.
        let within = |index: usize| previous[index].and_then(|before| places.binary_search(&before).ok());
        let previous: Vec<Option<usize>> = places.iter().map(|&index| within(index)).collect();
        let members: Vec<&TraceRequest> = places.iter().map(|&index| &trace.requests[index]).collect();
        let begins = |(&index, before): (&usize, &Option<usize>)| before.is_none().then_some(arrivals[index]);
        let starts: Vec<f64> = places.iter().zip(&previous).filter_map(begins).collect();
        // Lengths of what begins; where nothing that begins was answered, of all.
        let answered = |(request, before): (&&TraceRequest, &Option<usize>)| {
            (before.is_none() && !request.failed).then_some((request.input_tokens, request.output_tokens))
        };
        let mut pairs: Vec<(u32, u32)> = members.iter().zip(&previous).filter_map(answered).collect();
        if pairs.is_empty() {
            pairs = members.iter().map(|request| (request.input_tokens, request.output_tokens)).collect();
        }
        classes.push(ClassModel {
            labels: vec![Label { class: class.clone(), share: 1.0 }],
            windows: fit_windows(&starts, span_s, options.window_s, options.gaps),
            lengths: Lengths::fit(&pairs, options.lengths),
            most_input_tokens: members.iter().map(|request| request.input_tokens).max().unwrap_or(1),
            turns: Turns::fit(&members, &previous),
            failures: Failures::fit(
                places.iter().map(|&at| (loads[at], trace.requests[at].failed)).collect(),
            ),
        });
    }
    // Observed gaps need two arrivals; what is too rare for them stays a minute's rate.
    for class in classes.iter_mut().filter(|class| class.windows.is_empty()) {
        class.windows = fit_windows(&[0.0], span_s, span_s, GapLaw::Gamma);
    }
    Ok(WorkloadModel::new(trace.origin.clone(), span_s, classes))
}
