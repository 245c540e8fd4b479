//! How far one distribution over tokens lies from another.

/// Natural-log probabilities of all tokens, from logits. Sums run in f64; NaN counts as impossible.
#[derive(Clone, Debug)]
pub struct LogProbabilities {
    logits: Vec<f32>,
    log_sum: f64,
}

impl LogProbabilities {
    /// Of `logits` `[vocab]`; `None` when none is finite.
    pub fn of(logits: &[f32]) -> Option<Self> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !max.is_finite() {
            return None;
        }
        let weights = logits.iter().map(|&logit| f64::from(logit - max).exp());
        let sum: f64 = weights.filter(|weight| !weight.is_nan()).sum();
        Some(Self { logits: logits.to_vec(), log_sum: f64::from(max) + sum.ln() })
    }

    /// That of `token`; minus infinity for one that does not exist.
    pub fn of_token(&self, token: u32) -> f64 {
        self.logits.get(token as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - self.log_sum)
    }

    /// The most likely token.
    pub fn most_likely(&self) -> Option<u32> {
        crate::subject::most_likely(&self.logits)
    }
}

/// The Kullback-Leibler divergence from `truth` to `approximation`, in nats: what it costs to believe the second where
/// the first holds. Infinite where the second calls impossible what the first does not. Rounding can take it below zero
/// by parts in 10^7, and it is cut there.
pub fn kl_divergence(truth: &LogProbabilities, approximation: &LogProbabilities) -> f64 {
    let mut sum = 0.0;
    for (&p, &q) in truth.logits.iter().zip(&approximation.logits) {
        let log_p = f64::from(p) - truth.log_sum;
        let p = log_p.exp();
        if p > 0.0 {
            sum += p * (log_p - (f64::from(q) - approximation.log_sum));
        }
    }
    sum.max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_divergence_of_two_coins() {
        let fair = LogProbabilities::of(&[0.0, 0.0]).unwrap();
        let biased = LogProbabilities::of(&[0.9f32.ln(), 0.1f32.ln()]).unwrap();
        let expected = 0.5 * (0.5f64 / 0.9).ln() + 0.5 * (0.5f64 / 0.1).ln();
        assert!((kl_divergence(&fair, &biased) - expected).abs() < 1e-6);
        assert!((biased.of_token(1) - 0.1f64.ln()).abs() < 1e-6);
        assert_eq!((biased.most_likely(), biased.of_token(7)), (Some(0), f64::NEG_INFINITY));
        let certain = LogProbabilities::of(&[0.0, f32::NEG_INFINITY]).unwrap();
        assert_eq!(kl_divergence(&fair, &certain), f64::INFINITY);
        assert!((kl_divergence(&certain, &fair) - 2f64.ln()).abs() < 1e-12);
        assert!(LogProbabilities::of(&[f32::NAN, f32::NEG_INFINITY]).is_none());
    }

    proptest! {
        #[test]
        fn a_shift_of_logits_changes_nothing_and_distance_is_not_negative(
            logits in proptest::collection::vec(-20f32..20.0, 2..50), shift in -50f32..50.0, noise in 0f32..3.0,
        ) {
            let a = LogProbabilities::of(&logits).unwrap();
            let shifted: Vec<f32> = logits.iter().map(|x| x + shift).collect();
            prop_assert!(kl_divergence(&a, &LogProbabilities::of(&shifted).unwrap()) < 1e-4);
            let other: Vec<f32> = logits.iter().enumerate().map(|(i, x)| x + noise * (i % 2) as f32).collect();
            prop_assert!(kl_divergence(&a, &LogProbabilities::of(&other).unwrap()) >= 0.0);
        }
    }
}
