//! From logits to the next token.
//!
//! The steps run in llama.cpp's default order (`samplers` in its `common/common.h`, commit 1652066):
//! repeat penalty, top-k, top-p, min-p, and the temperature last, so that the filters see the model's own
//! probabilities and a high temperature only flattens what they left. The draw is by inverse cumulative sum with a
//! counter-based random number for (seed, position): the same request gives the same text on any number of threads.
//!
//! A [`Sampler`] allocates when it is made and never after.

mod options;
mod repeat_penalty;
mod steering;
mod token_mask;
mod top_k;

pub use options::{InvalidSampling, SamplingOptions};
pub(crate) use steering::{Steered, Steering};
pub use token_mask::{MaskError, TokenMask};
pub(crate) use top_k::{Candidate, select_top_k};

use crate::{
    log_softmax::{max_logit, sum_exp},
    randomness::{Purpose, fresh_seed, uniform},
};
use repeat_penalty::RepeatPenalty;

/// First guess for how many tokens reach top-p when top-k is off; each wrong guess is followed by one eight times as
/// large.
const NUCLEUS_GUESS: usize = 256;

/// Chooses tokens for one sequence.
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    penalty: RepeatPenalty,
    candidates: Vec<Candidate>,
    /// Running sums of the candidates' weights.
    cumulative: Vec<f64>,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`InvalidSampling`] when an option has a value that means nothing.
    pub fn new(options: SamplingOptions, vocab_size: usize) -> Result<Self, InvalidSampling> {
        options.validate()?;
        let candidates = if options.temperature == 0.0 { 0 } else { vocab_size };
        Ok(Self {
            seed: options.seed.unwrap_or_else(fresh_seed),
            penalty: RepeatPenalty::new(options.repeat_penalty, options.repeat_last_n, vocab_size),
            candidates: Vec::with_capacity(candidates),
            cumulative: Vec::with_capacity(candidates),
            options,
        })
    }

    /// The seed of the draws: the one asked for, or the fresh one that was taken.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The token that follows `history` (the whole sequence so far), given the model's `logits` `[vocab]` for it.
    ///
    /// `None` when there is nothing to choose from: no logit is finite, or one is plus infinity.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Option<u32> {
        let logits = self.penalty.apply(logits, history);
        if self.options.temperature == 0.0 {
            return most_likely(logits);
        }
        let max = max_logit(logits)?;
        filter(logits, max, &self.options, &mut self.candidates);
        let random = uniform(self.seed, Purpose::Token, history.len() as u64);
        draw(&self.candidates, max, self.options.temperature, random, &mut self.cumulative)
    }
}

/// The id of the largest logit, the lowest among equals.
fn most_likely(logits: &[f32]) -> Option<u32> {
    let max = max_logit(logits)?;
    logits.iter().position(|&logit| logit == max).map(|id| id as u32)
}

/// Top-k, top-p and min-p: fills `candidates` with the tokens that stay. The most likely token always does.
fn filter(logits: &[f32], max: f32, options: &SamplingOptions, candidates: &mut Vec<Candidate>) {
    let mut k = if options.top_k == 0 { logits.len() } else { options.top_k.min(logits.len()) };
    if options.top_p < 1.0 && k == logits.len() {
        // The nucleus of a whole vocabulary is nearly always small: sort no more of it than needed.
        let enough = f64::from(options.top_p) * sum_exp(logits, max);
        k = NUCLEUS_GUESS.min(k);
        select_top_k(logits, k, candidates);
        while !keep_nucleus(candidates, max, enough) && k < logits.len() {
            k = (8 * k).min(logits.len());
            select_top_k(logits, k, candidates);
        }
    } else if k < logits.len() {
        select_top_k(logits, k, candidates);
        if options.top_p < 1.0 {
            let sum: f64 = candidates.iter().map(|candidate| weight(candidate, max)).sum();
            keep_nucleus(candidates, max, f64::from(options.top_p) * sum);
        }
    } else {
        candidates.clear();
        let possible = |&(_, &logit): &(usize, &f32)| logit > f32::NEG_INFINITY;
        candidates.extend(
            logits.iter().enumerate().filter(possible).map(|(id, &logit)| Candidate { id: id as u32, logit }),
        );
    }
    if options.min_p > 0.0 {
        let lowest = max + options.min_p.ln();
        candidates.retain(|candidate| candidate.logit >= lowest);
    }
}

/// Cuts `candidates`, most likely first, after the one with which their weights reach `enough`; says whether they did.
fn keep_nucleus(candidates: &mut Vec<Candidate>, max: f32, enough: f64) -> bool {
    let mut sum = 0.0;
    let last = candidates.iter().position(|candidate| {
        sum += weight(candidate, max);
        sum >= enough
    });
    if let Some(last) = last {
        candidates.truncate(last + 1);
    }
    last.is_some()
}

/// Proportional to the candidate's probability; 1 for the most likely token.
fn weight(candidate: &Candidate, max: f32) -> f64 {
    f64::from((candidate.logit - max).exp())
}

/// Draws a candidate with probability proportional to `exp(logit / temperature)`; `random` is in `[0, 1)`.
fn draw(
    candidates: &[Candidate],
    max: f32,
    temperature: f32,
    random: f64,
    cumulative: &mut Vec<f64>,
) -> Option<u32> {
    cumulative.clear();
    let mut sum = 0.0;
    cumulative.extend(candidates.iter().map(|candidate| {
        sum += (f64::from(candidate.logit - max) / f64::from(temperature)).exp();
        sum
    }));
    // Below the sum even when the product rounds up to it: behind it there may be tokens of no weight.
    let target = (random * sum).min(sum.next_down());
    let chosen = cumulative.partition_point(|&below| below <= target);
    candidates.get(chosen).or(candidates.last()).map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests;
