//! Confidence intervals by the bootstrap (B. Efron, "Bootstrap methods: another look at the jackknife", 1979).
//!
//! A score is a ratio of sums over items: marks over questions, or negative log-likelihood over tokens. Items are drawn
//! with replacement, whole, because the questions of one item share its context and are not independent; the 2.5th and
//! 97.5th percentiles of the ratios are the interval. Two variants that saw the same items are compared on the same
//! draws, so that an item which is hard for both does not widen the interval of their difference.

use crate::{draw::Draw, statistics::percentile};

/// How often items are drawn anew.
const RESAMPLES: u64 = 2000;

/// What one item adds to a ratio of sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighted {
    /// To the sum above the line.
    pub sum: f64,
    /// To the one below.
    pub weight: f64,
}

/// A value and the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// The value over all items.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// The ratio of sums over `items`, seen through `show` (such as `exp`, for a perplexity). `None` when there is no weight.
pub fn bootstrap(items: &[Weighted], seed: u64, show: impl Fn(f64) -> f64) -> Option<Estimate> {
    let value = show(ratio(items.iter())?);
    let mut draws = Vec::with_capacity(RESAMPLES as usize);
    for resample in 0..RESAMPLES {
        let mut draw = Draw::new(seed, "bootstrap", resample);
        draws.extend(ratio(items.iter().map(|_| &items[draw.below(items.len())])).map(&show));
    }
    Some(interval(value, draws))
}

/// How far `items` lie above `baseline`, where `items[i]` and `baseline[i]` come from the same item. `None` when their
/// numbers differ or there is no weight.
pub fn paired_difference(
    items: &[Weighted],
    baseline: &[Weighted],
    seed: u64,
    show: impl Fn(f64) -> f64,
) -> Option<Estimate> {
    if items.len() != baseline.len() {
        return None;
    }
    let value = show(ratio(items.iter())?) - show(ratio(baseline.iter())?);
    let mut draws = Vec::with_capacity(RESAMPLES as usize);
    for resample in 0..RESAMPLES {
        let mut draw = Draw::new(seed, "bootstrap", resample);
        let chosen: Vec<usize> = items.iter().map(|_| draw.below(items.len())).collect();
        let pick = |from: &[Weighted]| ratio(chosen.iter().map(|&index| &from[index])).map(&show);
        if let (Some(a), Some(b)) = (pick(items), pick(baseline)) {
            draws.push(a - b);
        }
    }
    Some(interval(value, draws))
}

fn interval(value: f64, mut draws: Vec<f64>) -> Estimate {
    draws.sort_by(f64::total_cmp);
    let end = |share| percentile(&draws, share).unwrap_or(value);
    Estimate { value, low: end(0.025), high: end(0.975) }
}

fn ratio<'a>(items: impl Iterator<Item = &'a Weighted>) -> Option<f64> {
    let (sum, weight) = items.fold((0.0, 0.0), |(sum, weight), item| (sum + item.sum, weight + item.weight));
    (weight > 0.0).then_some(sum / weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(right: usize, of: usize) -> Vec<Weighted> {
        (0..of).map(|item| Weighted { sum: f64::from(u8::from(item < right)), weight: 1.0 }).collect()
    }

    #[test]
    fn the_interval_of_a_share_is_the_binomial_one() {
        let got = bootstrap(&marks(60, 100), 1, |x| x).unwrap();
        // The normal approximation: 1.96 sqrt(0.6 * 0.4 / 100) = 0.096.
        assert_eq!(got.value, 0.6);
        assert!((got.low - 0.504).abs() < 0.021 && (got.high - 0.696).abs() < 0.021, "{got:?}");
        assert_eq!(bootstrap(&marks(60, 100), 1, |x| x), Some(got));
        assert_ne!(
            bootstrap(&marks(60, 100), 2, |x| x).map(|e| (e.low, e.high, 2)),
            Some((got.low, got.high, 1))
        );
    }

    #[test]
    fn a_share_of_all_or_nothing_has_no_width() {
        let all = bootstrap(&marks(20, 20), 1, |x| x).unwrap();
        assert_eq!((all.low, all.value, all.high), (1.0, 1.0, 1.0));
        assert_eq!(bootstrap(&[], 1, |x| x), None);
        assert_eq!(bootstrap(&[Weighted { sum: 1.0, weight: 0.0 }], 1, |x| x), None);
    }

    #[test]
    fn pairing_takes_out_what_items_share() {
        // Items differ wildly, but each is worse by exactly 0.1.
        let full: Vec<Weighted> = (0..30).map(|i| Weighted { sum: f64::from(i), weight: 1.0 }).collect();
        let worse: Vec<Weighted> = full.iter().map(|w| Weighted { sum: w.sum - 0.1, ..*w }).collect();
        let got = paired_difference(&worse, &full, 1, |x| x).unwrap();
        assert!((got.low + 0.1).abs() < 1e-9 && (got.high + 0.1).abs() < 1e-9, "{got:?}");
        assert_eq!(paired_difference(&worse[1..], &full, 1, |x| x), None);
    }

    #[test]
    fn weights_count_and_the_view_is_applied_last() {
        let items = [Weighted { sum: 2.0, weight: 1.0 }, Weighted { sum: 1.0, weight: 3.0 }];
        let got = bootstrap(&items, 1, f64::exp).unwrap();
        assert!((got.value - 0.75f64.exp()).abs() < 1e-12);
        assert!((got.low - (1.0f64 / 3.0).exp()).abs() < 1e-12 && (got.high - 2f64.exp()).abs() < 1e-12);
    }
}
