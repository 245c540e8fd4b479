//! Natural-log probabilities from logits: `log p(i) = logit(i) - log sum_j exp(logit(j))`.
//!
//! The largest logit is subtracted before the exponentials, so none overflows; the sum over the vocabulary runs in f64.
//! These are the model's own probabilities, before any penalty, filter or temperature: the ones that scores and
//! published log-probabilities mean.

use crate::sampling::{Candidate, select_top_k};

/// The log-probability of one token of a sequence, given those before it, and of what could have stood there instead.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its natural-log probability.
    pub logprob: f32,
    /// The most likely tokens and their log-probabilities, most likely first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// The largest logit; `None` when it is not finite. NaN counts as minus infinity.
pub(crate) fn max_logit(logits: &[f32]) -> Option<f32> {
    // Sixteen running maxima, so that the compiler can use vector registers.
    let mut maxima = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (max, &logit) in maxima.iter_mut().zip(chunk) {
            *max = if logit > *max { logit } else { *max };
        }
    }
    let max = maxima.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    max.is_finite().then_some(max)
}

/// `sum exp(logit - max)`, skipping NaN.
pub(crate) fn sum_exp(logits: &[f32], max: f32) -> f64 {
    logits.iter().map(|&logit| (logit - max).exp()).filter(|weight| !weight.is_nan()).map(f64::from).sum()
}

/// Turns logits of one position into log-probabilities; keeps its buffer from call to call.
#[derive(Default)]
pub(crate) struct LogSoftmax {
    selected: Vec<Candidate>,
}

impl LogSoftmax {
    /// The log-probability of `id`, and the `top` most likely tokens; `None` when no logit of `logits` `[vocab]` is
    /// finite, or `id` is outside of it.
    pub(crate) fn token(&mut self, logits: &[f32], id: u32, top: usize) -> Option<TokenLogprob> {
        let max = max_logit(logits)?;
        let log_sum = sum_exp(logits, max).ln();
        let logprob = |logit: f32| (f64::from(logit - max) - log_sum) as f32;
        select_top_k(logits, top, &mut self.selected);
        Some(TokenLogprob {
            id,
            logprob: logprob(*logits.get(id as usize)?),
            top: self.selected.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_match_the_formula(
            logits in proptest::collection::vec(-30f32..30.0, 1..300), shift in -1000f32..1000.0,
        ) {
            let shifted: Vec<f32> = logits.iter().map(|logit| logit + shift).collect();
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let all = LogSoftmax::default().token(&shifted, 0, logits.len()).unwrap().top;
            prop_assert_eq!(all.len(), logits.len());
            for &(id, logprob) in &all {
                let expected = f64::from(logits[id as usize]) - sum.ln();
                // Adding the shift rounds each logit to a multiple of 2^-14 at most.
                prop_assert!((f64::from(logprob) - expected).abs() < 3e-4, "{logprob} {expected}");
            }
            let total: f64 = all.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-5);
            prop_assert!(all.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        }
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let two = LogSoftmax::default().token(&[1e30, 1e30, -1e30], 1, 2).unwrap();
        assert_eq!(two.logprob, 0.5f32.ln());
        assert_eq!(two.top, [(0, 0.5f32.ln()), (1, 0.5f32.ln())]);
    }

    #[test]
    fn what_has_no_probability_is_none() {
        assert_eq!(LogSoftmax::default().token(&[f32::NAN], 0, 1), None);
        assert_eq!(LogSoftmax::default().token(&[0.0], 1, 0), None);
    }
}
