//! Conversations: how many turns they have, how long until the next one, and how prompts grow.
//!
//! The prompt of a turn is everything that was said before and a new question, so it is longer than the last prompt and
//! its answer together; how much longer is the question. All three are kept as observed: shares of conversations by their
//! turns, and quantiles of intervals (from arrival to arrival) and growth.

use serde::{Deserialize, Serialize};

use crate::{
    draw::Draw,
    statistics::{percentile, quantiles},
    trace::TraceRequest,
};

/// Quantiles of intervals and growth.
const QUANTILES: usize = 65;
/// Turns of a conversation that are told apart; longer ones count as these.
const MOST_TURNS: usize = 256;

/// The turns of conversations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turns {
    /// Shares of conversations with 1, 2, 3, ... turns.
    pub shares: Vec<f64>,
    /// Quantiles of the seconds from one turn's arrival to the next one's.
    pub interval_s: Vec<f32>,
    /// Quantiles of the tokens by which a prompt is longer than the last prompt and answer; negative where history was cut.
    pub growth_tokens: Vec<f32>,
}

impl Turns {
    /// Every request for itself.
    pub fn single() -> Self {
        Self { shares: vec![1.0], interval_s: Vec::new(), growth_tokens: Vec::new() }
    }

    /// Those of `requests`, where `previous` has the place of the turn before.
    pub fn fit(requests: &[&TraceRequest], previous: &[Option<usize>]) -> Self {
        let mut depth = vec![1_usize; requests.len()];
        let mut counts = vec![0.0; 1];
        let (mut intervals, mut growth) = (Vec::new(), Vec::new());
        for (index, request) in requests.iter().enumerate() {
            let Some(before) = previous[index] else {
                counts[0] += 1.0;
                continue;
            };
            depth[index] = (depth[before] + 1).min(MOST_TURNS);
            if counts.len() < depth[index] {
                counts.resize(depth[index], 0.0);
            }
            // A conversation of n turns was one of n - 1 before.
            if depth[index] > depth[before] {
                counts[depth[before] - 1] -= 1.0;
                counts[depth[index] - 1] += 1.0;
            }
            let earlier = requests[before];
            intervals.push(request.arrival_s - earlier.arrival_s);
            let said = f64::from(earlier.input_tokens) + f64::from(earlier.output_tokens);
            growth.push(f64::from(request.input_tokens) - said);
        }
        let all: f64 = counts.iter().sum();
        Self {
            shares: counts.iter().map(|count| count / all.max(1.0)).collect(),
            interval_s: quantiles(intervals, QUANTILES),
            growth_tokens: quantiles(growth, QUANTILES),
        }
    }

    /// Turns of a conversation, on average.
    pub fn mean(&self) -> f64 {
        let sum: f64 = self.shares.iter().sum();
        self.shares.iter().zip(1..).map(|(share, turns)| share * f64::from(turns)).sum::<f64>() / sum
    }

    /// The longest time that a conversation takes, in seconds, up to its last turn: that many intervals of the longest.
    pub fn longest_s(&self) -> f64 {
        let last = self.interval_s.last().map_or(0.0, |&seconds| f64::from(seconds));
        last * (self.shares.len() - 1) as f64
    }

    /// Turns of one conversation, from 1 on.
    pub fn draw(&self, draw: &mut Draw) -> usize {
        draw.weighted(&self.shares).unwrap_or(0) + 1
    }

    /// Seconds until the next turn.
    pub fn draw_interval_s(&self, draw: &mut Draw) -> f64 {
        percentile(&self.interval_s, draw.unit()).unwrap_or(0.0)
    }

    /// Tokens of the next prompt behind one of `input` tokens and its answer of `output`.
    pub fn draw_input(&self, input: u32, output: u32, draw: &mut Draw) -> u32 {
        let said = f64::from(input) + f64::from(output);
        let growth = percentile(&self.growth_tokens, draw.unit()).unwrap_or(0.0);
        (said + growth).round().clamp(1.0, f64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_intervals_and_growth_are_those_of_the_conversations() {
        let at = |arrival: f64, input, output| TraceRequest::plain(arrival, input, output);
        let requests =
            [at(0.0, 100, 10), at(1.0, 50, 5), at(30.0, 130, 10), at(60.0, 160, 1), at(61.0, 9, 9)];
        let previous = [None, None, Some(0), Some(2), None];
        let turns = Turns::fit(&requests.iter().collect::<Vec<_>>(), &previous);
        assert_eq!(turns.shares, [2.0 / 3.0, 0.0, 1.0 / 3.0]);
        assert!((turns.mean() - 5.0 / 3.0).abs() < 1e-12);
        assert_eq!((turns.interval_s[0], turns.growth_tokens[0], turns.longest_s()), (30.0, 20.0, 60.0));
        let drawn: Vec<usize> = (0..3000).map(|n| turns.draw(&mut Draw::new(1, "turns", n))).collect();
        let ones = drawn.iter().filter(|&&n| n == 1).count();
        // Binomial(3000, 2/3): deviation 26.
        assert!(ones.abs_diff(2000) < 155 && drawn.iter().all(|&n| n == 1 || n == 3), "{ones}");
        assert_eq!(turns.draw_input(100, 10, &mut Draw::new(1, "x", 0)), 130);
    }

    #[test]
    fn requests_without_conversations_have_one_turn() {
        let request = TraceRequest::plain(0.0, 1, 1);
        assert_eq!(Turns::fit(&[&request, &request], &[None, None]), Turns::single());
        assert_eq!((Turns::single().draw(&mut Draw::new(1, "x", 0)), Turns::single().longest_s()), (1, 0.0));
    }
}
