//! A trace made faster, shorter, thinner, or fit for a small model. What is changed is a property of the load, so each
//! change has its own verb and nothing is changed on the quiet.

use serde::Serialize;

use super::{Trace, TraceRequest};
use crate::draw::Draw;

/// What [`Trace::clip`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clipped {
    /// Requests whose prompts lost tokens.
    pub prompts: usize,
    /// Requests whose answers did.
    pub answers: usize,
}

impl Trace {
    /// Lets time pass `factor` times as fast: every gap is divided by it, and so are the waits between turns
    /// and what the service's answers took.
    #[must_use]
    pub fn faster(mut self, factor: f64) -> Self {
        for request in &mut self.requests {
            request.arrival_s /= factor;
            request.elapsed_s = request.elapsed_s.map(|elapsed| elapsed / factor);
        }
        self.resolution_s /= factor;
        self
    }

    /// Keeps what arrives from `start_s` on for `length_s` seconds, counted from the beginning, and starts the clock anew.
    #[must_use]
    pub fn window(mut self, start_s: f64, length_s: f64) -> Self {
        let end = start_s + length_s;
        self.requests.retain(|request| (start_s..end).contains(&request.arrival_s));
        self.requests.iter_mut().for_each(|request| request.arrival_s -= start_s);
        self
    }

    /// Keeps the first `count` requests.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.requests.truncate(count);
        self
    }

    /// Keeps a `share` of the conversations, each whole, so that bursts and turns stay as they are at a lower rate.
    #[must_use]
    pub fn thinned(mut self, share: f64, seed: u64) -> Self {
        let mut index = 0;
        self.requests.retain(|request| {
            index += 1;
            let (purpose, at) = request.session.map_or(("thin", index), |session| ("thin sessions", session));
            Draw::new(seed, purpose, at).unit() < share
        });
        self
    }

    /// Leaves out requests that the service did not answer: there is nothing to ask again.
    #[must_use]
    pub fn answered(mut self) -> Self {
        self.requests.retain(|request| !request.failed && request.output_tokens > 0);
        self
    }

    /// Leaves out requests that are equal to the one before in every column.
    #[must_use]
    pub fn without_duplicates(mut self) -> Self {
        self.requests.dedup();
        self
    }

    /// Makes prompts, answers and blocks `factor` times as long, at least one token each. What was shared stays shared.
    #[must_use]
    pub fn resized(mut self, factor: f64) -> Self {
        let resized =
            |tokens: u32| if tokens == 0 { 0 } else { ((f64::from(tokens) * factor).round() as u32).max(1) };
        for request in &mut self.requests {
            request.input_tokens = resized(request.input_tokens);
            request.output_tokens = resized(request.output_tokens);
        }
        self.block_tokens = ((self.block_tokens as f64 * factor).round() as usize).max(1);
        self
    }

    /// Cuts prompts and answers to what a model with a context of `context_tokens` can take: the answer to half of it,
    /// and the prompt, from its end, to what the answer leaves. Beginnings stay, and so does what is shared.
    pub fn clip(&mut self, context_tokens: u32) -> Clipped {
        let mut clipped = Clipped::default();
        for request in &mut self.requests {
            let answer = request.output_tokens.min((context_tokens / 2).max(1));
            let prompt = request.input_tokens.min(context_tokens.saturating_sub(answer).max(1));
            clipped.answers += usize::from(answer < request.output_tokens);
            clipped.prompts += usize::from(prompt < request.input_tokens);
            (request.output_tokens, request.input_tokens) = (answer, prompt);
        }
        clipped
    }

    /// Spreads arrivals that were rounded to [`resolution_s`](Self::resolution_s) evenly at random over what they may
    /// have been. How they came within that time is not in the trace.
    #[must_use]
    pub fn spread(mut self, seed: u64) -> Self {
        let resolution = self.resolution_s;
        for (index, request) in self.requests.iter_mut().enumerate() {
            request.arrival_s += resolution * Draw::new(seed, "spread", index as u64).unit();
        }
        self.requests.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
        self.resolution_s = 0.0;
        self
    }
}

/// What the arrivals of `requests` are rounded to, in seconds, as far as they show it: whole seconds, or a longer tick when
/// a good part of them come at once.
pub(super) fn resolution(requests: &[TraceRequest]) -> f64 {
    const AT_ONCE: f64 = 0.2;
    let gaps = requests.windows(2).map(|pair| pair[1].arrival_s - pair[0].arrival_s);
    let mut ticks: Vec<f64> = gaps.clone().filter(|&gap| gap > 0.0).collect();
    if ticks.is_empty() {
        return 0.0;
    }
    ticks.sort_by(f64::total_cmp);
    let at_once = 1.0 - ticks.len() as f64 / gaps.count() as f64;
    // Ticks may be off by a little: a shorter one now and then does not count.
    let tick = ticks[ticks.len() / 50];
    let whole = requests.iter().all(|request| request.arrival_s.fract() == 0.0);
    match (at_once > AT_ONCE && tick > 0.01, whole) {
        (true, _) => tick.max(if whole { 1.0 } else { 0.0 }),
        (false, true) => 1.0,
        (false, false) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Class;

    fn trace(arrivals: &[f64]) -> Trace {
        let requests = arrivals.iter().map(|&at| TraceRequest::plain(at, 1000, 300)).collect();
        Trace::new(requests, vec![Class::default()], 512, "x".into())
    }

    #[test]
    fn every_gap_is_divided_exactly() {
        let before = trace(&[0.0, 0.3, 7.25, 100.0]);
        let after = before.clone().faster(4.0);
        let expected: Vec<f64> = before.requests.iter().map(|request| request.arrival_s / 4.0).collect();
        assert_eq!(after.requests.iter().map(|request| request.arrival_s).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn users_think_for_what_the_answer_leaves_of_the_time_between_turns() {
        let mut trace = trace(&[0.0, 2.0, 20.0]);
        assert_eq!(trace.think_s(0, 2), 0.0, "the trace does not say how long the answer took");
        trace.requests[0].elapsed_s = Some(8.0);
        trace.requests[1].elapsed_s = Some(30.0);
        assert_eq!((trace.think_s(0, 2), trace.think_s(1, 2)), (12.0, 0.0));
        assert_eq!(trace.faster(4.0).think_s(0, 2), 3.0);
    }

    #[test]
    fn a_window_starts_its_own_clock() {
        let window = trace(&[0.0, 10.0, 19.5, 20.0]).window(10.0, 10.0);
        assert_eq!(window.requests.iter().map(|r| r.arrival_s).collect::<Vec<_>>(), [0.0, 9.5]);
    }

    #[test]
    fn clipping_keeps_the_context_and_counts() {
        let mut trace = trace(&[0.0, 1.0]);
        trace.requests[1].output_tokens = 900;
        assert_eq!(trace.clip(1200), Clipped { prompts: 2, answers: 1 });
        let lengths: Vec<_> = trace.requests.iter().map(|r| (r.input_tokens, r.output_tokens)).collect();
        assert_eq!(lengths, [(900, 300), (600, 600)]);
    }

    #[test]
    fn thinning_keeps_conversations_whole_and_about_the_share() {
        let mut trace = trace(&(0..4000).map(f64::from).collect::<Vec<_>>());
        trace.requests.iter_mut().enumerate().for_each(|(at, r)| r.session = Some(at as u64 % 1000));
        let kept = trace.thinned(0.3, 1).requests;
        // Binomial(1000, 0.3): deviation 14.5 conversations of 4.
        assert!(kept.len().is_multiple_of(4) && kept.len().abs_diff(1200) < 4 * 75, "{}", kept.len());
    }

    #[test]
    fn rounding_is_seen_and_spread() {
        assert_eq!(trace(&[0.0, 0.25, 1.5]).resolution_s, 0.0);
        assert_eq!(trace(&[0.0, 7.0, 9.0]).resolution_s, 1.0);
        let ticks: Vec<f64> =
            (0..400).map(|at| f64::from(at / 10) * 3.0 + f64::from(at / 10 % 2) * 0.001).collect();
        let ticks = trace(&ticks);
        assert!((ticks.resolution_s - 3.0).abs() < 0.01, "{}", ticks.resolution_s);
        let spread = ticks.spread(1);
        assert!(spread.gaps_s().iter().filter(|&&gap| gap == 0.0).count() == 0);
        assert!(spread.requests.iter().all(|r| r.arrival_s < 121.0));
    }

    #[test]
    fn resizing_keeps_the_share_of_a_block() {
        let small = trace(&[0.0]).resized(0.1);
        let request = &small.requests[0];
        assert_eq!((request.input_tokens, request.output_tokens, small.block_tokens), (100, 30, 51));
    }
}
