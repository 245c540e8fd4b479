//! New load from a model: any size, any rate, the same for the same seed.

use std::collections::HashMap;

use super::{ClassModel, Window, WorkloadModel, arrivals::draw_arrivals, failures::loads};
use crate::{
    draw::Draw,
    trace::{Trace, TraceRequest},
};

/// Time that conversations are drawn for before the trace begins, at most: many times what nearly all of them last.
const MOST_WARM_UP_S: f64 = 4.0 * 3600.0;

/// How fast requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As often as in the model, times this.
    Times(f64),
    /// So many requests per second, on average over what is generated.
    PerSecond(f64),
}

/// What to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Where in the model's time to begin, in seconds; windows that end before are left out at first.
    pub start_s: f64,
    /// Seconds to generate.
    pub seconds: f64,
    /// Requests to generate, at most.
    pub requests: usize,
    /// How fast they come.
    pub rate: Rate,
}

/// A trace drawn from `model`.
pub fn generate(model: &WorkloadModel, options: GenerateOptions) -> Trace {
    let factor = match options.rate {
        Rate::Times(factor) => factor,
        Rate::PerSecond(rate) => {
            let seconds = options.seconds.min(options.requests as f64 / rate);
            let expected: f64 =
                model.classes.iter().map(|stream| expected(stream, options.start_s, seconds)).sum();
            // Where nothing ever comes, nothing comes faster.
            if expected > 0.0 { rate * seconds / expected } else { 1.0 }
        }
    };
    // No more than is asked for has to be drawn: about so long, and longer if that was a quiet time.
    let mut seconds = options.seconds.min(1.2 * options.requests as f64 / (model.rate() * factor) + 60.0);
    loop {
        let trace = draw_trace(model, GenerateOptions { seconds, ..options }, factor);
        if trace.requests.len() >= options.requests || seconds >= options.seconds {
            return trace;
        }
        seconds = options.seconds.min(2.0 * seconds);
    }
}

fn draw_trace(model: &WorkloadModel, options: GenerateOptions, factor: f64) -> Trace {
    let mut requests = Vec::new();
    let mut classes = Vec::new();
    let mut streams = Vec::new();
    for (number, stream) in model.classes.iter().enumerate() {
        stream_requests(stream, number, classes.len(), &options, factor, &mut requests);
        classes.extend(stream.labels.iter().map(|label| label.class.clone()));
        streams.resize(classes.len(), stream);
    }
    let origin = format!("twin of {}, seed {}", model.origin, options.seed);
    let mut trace = Trace::new(requests, classes, 1, origin);
    trace.requests.truncate(options.requests);
    trace.resolution_s = 0.0;
    // Conversations are counted in the order in which they appear.
    let mut sessions = HashMap::new();
    for session in trace.requests.iter_mut().filter_map(|request| request.session.as_mut()) {
        let next = sessions.len() as u64;
        *session = *sessions.entry(*session).or_insert(next);
    }
    // Failures need the load, and the load all streams.
    let arrivals: Vec<f64> = trace.requests.iter().map(|request| request.arrival_s).collect();
    for (index, (request, load)) in trace.requests.iter_mut().zip(loads(&arrivals)).enumerate() {
        let mut draw = Draw::new(options.seed, "failure", index as u64);
        // The load that the model knows is that of its own rate.
        let load = (f64::from(load) / factor).round() as u32;
        if streams[usize::from(request.class)].failures.draw(load, &mut draw) {
            (request.failed, request.output_tokens) = (true, 0);
        }
    }
    trace
}

/// The requests of the stream `number`, whose labels are the classes from `first_class` on.
fn stream_requests(
    model: &ClassModel,
    number: usize,
    first_class: usize,
    options: &GenerateOptions,
    factor: f64,
    requests: &mut Vec<TraceRequest>,
) {
    let (seconds, seed) = (options.seconds, options.seed);
    let windows = windows_from(&model.windows, options.start_s);
    // Conversations that began before the trace does go on in it.
    let warm_up = model.turns.longest_s().min(MOST_WARM_UP_S);
    let named = |what: &str| format!("{what} {number}");
    let early = draw_arrivals(&windows, warm_up, factor, seed, &named("early arrivals"));
    let starts = draw_arrivals(&windows, seconds, factor, seed, &named("arrivals"));
    let early = early.into_iter().map(|at| at - warm_up).collect();
    let streams: [(String, Vec<f64>); 2] = [(named("early request"), early), (named("request"), starts)];
    for (stream, (purpose, starts)) in streams.into_iter().enumerate() {
        for (index, start) in starts.into_iter().enumerate() {
            let mut draw = Draw::new(seed, &purpose, index as u64);
            let class = u16::try_from(first_class + label(model, &mut draw)).unwrap_or(u16::MAX);
            let turns = model.turns.draw(&mut draw);
            let session = (turns > 1).then_some((index * 2 + stream) as u64 | (number as u64) << 48);
            let (mut at, (mut input, mut output)) = (start, model.lengths.draw(&mut draw));
            for turn in 0..turns {
                if turn > 0 {
                    at += model.turns.draw_interval_s(&mut draw);
                    input = model.turns.draw_input(input, output, &mut draw);
                    output = model.lengths.draw_output(input, &mut draw);
                }
                input = input.min(model.most_input_tokens.max(1));
                if (0.0..seconds).contains(&at) {
                    requests.push(TraceRequest { session, class, ..TraceRequest::plain(at, input, output) });
                }
            }
        }
    }
}

/// `windows`, beginning with the one that `start_s` lies in; those before it come at the end.
fn windows_from(windows: &[Window], start_s: f64) -> Vec<Window> {
    let span: f64 = windows.iter().map(|window| window.seconds).sum();
    let mut left = if span > 0.0 { start_s.rem_euclid(span) } else { 0.0 };
    let before = windows.iter().take_while(|window| {
        left -= window.seconds;
        left >= 0.0
    });
    let before = before.count();
    let mut windows = windows.to_vec();
    windows.rotate_left(before);
    windows
}

/// Requests that `seconds` from `start_s` on have on average.
fn expected(stream: &ClassModel, start_s: f64, seconds: f64) -> f64 {
    let windows = windows_from(&stream.windows, start_s);
    let (span, all) =
        windows.iter().fold((0.0, 0.0), |sum, window| (sum.0 + window.seconds, sum.1 + window.arrivals));
    if span <= 0.0 {
        return 0.0;
    }
    let (mut arrivals, mut left) = ((seconds / span).floor() * all, seconds % span);
    for window in windows {
        let share = (left / window.seconds).clamp(0.0, 1.0);
        arrivals += share * window.arrivals;
        left -= window.seconds;
    }
    arrivals * stream.turns.mean()
}

/// The place of the label that a conversation gets.
fn label(model: &ClassModel, draw: &mut Draw) -> usize {
    let shares: Vec<f64> = model.labels.iter().map(|label| label.share).collect();
    draw.weighted(&shares).unwrap_or(0)
}
