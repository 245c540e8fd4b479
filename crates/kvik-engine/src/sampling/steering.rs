//! What a request does to the model's logits before anything is chosen from them.
//!
//! Biases are added, tokens that the answer has said already are penalised, and the end is kept away until the answer is
//! long enough. The two penalties are OpenAI's: with `count` occurrences of a token among the *generated* tokens (those of
//! the prompt do not count), its logit loses `count × frequency + [count > 0] × presence`.

use super::InvalidSampling;
use crate::log_softmax::max_logit;

/// What is done to the logits of one request; the default does nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Steering {
    /// Taken from a token's logit once for each time that it was generated.
    pub(crate) frequency_penalty: f32,
    /// Taken from the logit of a token that was generated.
    pub(crate) presence_penalty: f32,
    /// Added to the logits of tokens.
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// The answer does not end before so many tokens.
    pub(crate) min_tokens: usize,
}

impl Steering {
    /// Checks that every value means something to a model of `vocab_size` tokens.
    pub(crate) fn validate(&self, vocab_size: usize) -> Result<(), InvalidSampling> {
        for penalty in [self.frequency_penalty, self.presence_penalty] {
            if !penalty.is_finite() {
                return Err(InvalidSampling::Penalty(penalty));
            }
        }
        match self.logit_bias.iter().find(|(id, bias)| *id as usize >= vocab_size || bias.is_nan()) {
            Some(&(id, bias)) => Err(InvalidSampling::LogitBias { id, bias }),
            None => Ok(()),
        }
    }
}

/// Counts what was generated, and changes logits accordingly.
pub(crate) struct Steered {
    steering: Steering,
    /// Generated tokens and how often, by id. Kept only if a penalty asks for it.
    counts: Vec<(u32, u32)>,
}

impl Steered {
    pub(crate) fn new(steering: Steering) -> Self {
        Self { steering, counts: Vec::new() }
    }

    /// True if [`Self::apply`] changes nothing after `generated` tokens.
    pub(crate) fn is_idle(&self, generated: usize) -> bool {
        let Steering { logit_bias, min_tokens, .. } = &self.steering;
        logit_bias.is_empty() && generated >= *min_tokens && (!self.penalises() || self.counts.is_empty())
    }

    /// Changes `logits` `[vocab]` for the token after `generated` ones. `ends` are the tokens that would end the answer.
    pub(crate) fn apply(&self, logits: &mut [f32], generated: usize, ends: &[u32]) {
        let Steering { frequency_penalty, presence_penalty, logit_bias, min_tokens } = &self.steering;
        for &(id, bias) in logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        for &(id, count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= count as f32 * frequency_penalty + presence_penalty;
            }
        }
        if generated < *min_tokens {
            keep_away(logits, ends);
        }
    }

    /// Hears that `id` was generated.
    pub(crate) fn accept(&mut self, id: u32) {
        if !self.penalises() {
            return;
        }
        match self.counts.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => self.counts[at].1 += 1,
            Err(at) => self.counts.insert(at, (id, 1)),
        }
    }

    fn penalises(&self) -> bool {
        self.steering.frequency_penalty != 0.0 || self.steering.presence_penalty != 0.0
    }
}

/// Takes `ends` out of `logits`, unless nothing else is left.
fn keep_away(logits: &mut [f32], ends: &[u32]) {
    let before: Vec<(u32, f32)> =
        ends.iter().filter_map(|&id| logits.get(id as usize).map(|&logit| (id, logit))).collect();
    before.iter().for_each(|&(id, _)| logits[id as usize] = f32::NEG_INFINITY);
    if max_logit(logits).is_none() {
        before.iter().for_each(|&(id, logit)| logits[id as usize] = logit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_are_openais() {
        let steering = Steering { frequency_penalty: 0.5, presence_penalty: 0.25, ..Steering::default() };
        let mut steered = Steered::new(steering);
        assert!(steered.is_idle(0));
        [2, 0, 2, 2].into_iter().for_each(|id| steered.accept(id));
        let mut logits = [1.0, 1.0, 1.0, 1.0];
        assert!(!steered.is_idle(4));
        steered.apply(&mut logits, 4, &[]);
        // mu[j] - c[j] * frequency - float(c[j] > 0) * presence
        assert_eq!(logits, [1.0 - 0.5 - 0.25, 1.0, 1.0 - 1.5 - 0.25, 1.0]);
    }

    #[test]
    fn biases_are_added_and_unknown_tokens_ignored() {
        let steering = Steering { logit_bias: vec![(1, -100.0), (7, 3.0)], ..Steering::default() };
        let mut logits = [1.0, 2.0];
        Steered::new(steering).apply(&mut logits, 0, &[]);
        assert_eq!(logits, [1.0, -98.0]);
    }

    #[test]
    fn the_end_is_kept_away_until_the_answer_is_long_enough() {
        let steered = Steered::new(Steering { min_tokens: 2, ..Steering::default() });
        let ended = |generated: usize| {
            let mut logits = [1.0, 5.0];
            if !steered.is_idle(generated) {
                steered.apply(&mut logits, generated, &[1]);
            }
            logits[1]
        };
        assert_eq!([ended(0), ended(1), ended(2)], [f32::NEG_INFINITY, f32::NEG_INFINITY, 5.0]);
        // Where nothing else may follow, the end may.
        let mut logits = [f32::NEG_INFINITY, 5.0];
        steered.apply(&mut logits, 0, &[1]);
        assert_eq!(logits[1], 5.0);
    }
}
