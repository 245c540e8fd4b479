//! What users ask, and how many of them.

use std::{fmt, str::FromStr};

use kvik_eval::{
    draw::Draw,
    load::{Pace, Slot},
    trace::{burstgpt::gamma, prompts::Part},
};

/// Whole numbers from the first to the second, both possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// The smallest.
    pub least: usize,
    /// The largest.
    pub most: usize,
}

/// A text is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number from 1 on is needed, or a range such as 200-1500")]
pub struct NoRange;

impl FromStr for Range {
    type Err = NoRange;

    fn from_str(text: &str) -> Result<Self, NoRange> {
        let number =
            |text: &str| text.trim().parse().ok().filter(|&number: &usize| number > 0).ok_or(NoRange);
        let (least, most) = match text.split_once('-') {
            Some((least, most)) => (number(least)?, number(most)?),
            None => (number(text)?, number(text)?),
        };
        if least > most {
            return Err(NoRange);
        }
        Ok(Self { least, most })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            write!(f, "{}", self.least)
        } else {
            write!(f, "{}-{}", self.least, self.most)
        }
    }
}

impl Range {
    fn draw(self, draw: &mut Draw) -> usize {
        self.least + draw.below(self.most - self.least + 1)
    }
}

/// What users ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Workload {
    /// Tokens of a prompt, the shared part not counted.
    pub prompt_tokens: Range,
    /// Tokens of an answer.
    pub answer_tokens: Range,
    /// Tokens that all prompts begin with.
    pub shared_tokens: usize,
    /// Seed of all that is drawn.
    pub seed: u64,
}

impl Workload {
    /// The `index`-th request of `round`: its prompt in parts, and the tokens of its answer. Lengths are the same in all
    /// rounds, texts are not.
    pub fn request(&self, round: usize, index: usize) -> (Vec<Part>, u64) {
        let mut draw = Draw::new(self.seed, "request", index as u64);
        let (prompt, answer) = (self.prompt_tokens.draw(&mut draw), self.answer_tokens.draw(&mut draw));
        let shared = Part { kind: "shared", name: 0, tokens: self.shared_tokens };
        let own = Part { kind: "own", name: ((round as u64) << 32) | index as u64, tokens: prompt };
        let parts = if self.shared_tokens > 0 { vec![shared, own] } else { vec![own] };
        (parts, answer as u64)
    }
}

/// How many ask.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "loop", rename_all = "snake_case")]
pub enum Level {
    /// Users who each wait for their answer.
    Closed {
        /// How many.
        users: usize,
        /// Requests of all of them.
        requests: usize,
    },
    /// Requests whether or not those before are answered.
    Open {
        /// How many in a second, on average.
        rate: f64,
        /// The shape of the gaps between them: 1 is a Poisson process, less comes in bursts.
        alpha: f64,
        /// All of them.
        requests: usize,
    },
}

impl Level {
    /// When its requests are sent.
    pub fn pace(&self, seed: u64) -> Pace {
        match *self {
            Self::Closed { users, requests } => Pace::Closed { users, requests },
            Self::Open { rate, alpha, requests } => {
                let mut at = 0.0;
                let slot = |index: usize| {
                    let due_s = at;
                    at += gamma(&mut Draw::new(seed, "gap", index as u64), alpha) / (alpha * rate);
                    Slot { due_s, after: None }
                };
                Pace::Open((0..requests).map(slot).collect())
            }
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { users, .. } => write!(f, "{users} users"),
            Self::Open { rate, alpha, .. } if *alpha == 1.0 => write!(f, "{rate}/s"),
            Self::Open { rate, alpha, .. } => write!(f, "{rate}/s, alpha {alpha}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_refused() {
        assert_eq!("200-1500".parse(), Ok(Range { least: 200, most: 1500 }));
        assert_eq!("64".parse::<Range>().unwrap().to_string(), "64");
        for text in ["", "0", "9-3", "a-b", "3-"] {
            assert_eq!(text.parse::<Range>(), Err(NoRange), "{text}");
        }
    }

    #[test]
    fn rounds_ask_for_the_same_lengths_with_other_texts() {
        let range = |text: &str| text.parse().unwrap();
        let workload = Workload {
            prompt_tokens: range("200-300"),
            answer_tokens: range("8"),
            shared_tokens: 50,
            seed: 3,
        };
        let (first, second) = (workload.request(0, 5), workload.request(1, 5));
        assert_eq!((first.0[0], first.0[1].tokens, first.1), (second.0[0], second.0[1].tokens, 8));
        assert_ne!(first.0[1].name, second.0[1].name);
        let lengths: Vec<usize> = (0..500).map(|index| workload.request(0, index).0[1].tokens).collect();
        assert!(lengths.iter().all(|length| (200..=300).contains(length)));
        assert!(lengths.contains(&200) && lengths.contains(&300));
    }

    #[test]
    fn an_open_level_has_its_rate_and_its_bursts() {
        let gaps = |alpha: f64| {
            let Pace::Open(slots) = (Level::Open { rate: 4.0, alpha, requests: 4000 }).pace(1) else {
                panic!("open")
            };
            let gaps: Vec<f64> = slots.windows(2).map(|pair| pair[1].due_s - pair[0].due_s).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            (mean, variance.sqrt() / mean)
        };
        let ((even, even_cv), (burst, burst_cv)) = (gaps(1.0), gaps(0.25));
        assert!((even * 4.0 - 1.0).abs() < 0.1 && (burst * 4.0 - 1.0).abs() < 0.2, "{even} {burst}");
        assert!((even_cv - 1.0).abs() < 0.1 && (burst_cv - 2.0).abs() < 0.3, "{even_cv} {burst_cv}");
    }
}
