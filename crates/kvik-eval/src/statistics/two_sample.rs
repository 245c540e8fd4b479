//! Whether two samples can come from one distribution: the two-sample test of Kolmogorov and Smirnov.
//!
//! The statistic is the largest distance between the two empirical distribution functions, so it needs no bins and does
//! not care in which units the numbers are. With thousands of numbers the test sees differences that matter to nobody;
//! then the distance itself says more than its probability.

use serde::Serialize;

/// What the test says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TwoSample {
    /// The largest distance between the distribution functions, from 0 to 1.
    pub distance: f64,
    /// How likely a distance of this size or more is when both samples are of one distribution, in the limit of many
    /// numbers without ties. With ties the true probability is larger: the test is then cautious.
    pub p_value: f64,
}

/// The two-sample test of Kolmogorov and Smirnov. `None` when a sample is empty or has numbers that are not finite.
pub fn kolmogorov_smirnov(a: &[f64], b: &[f64]) -> Option<TwoSample> {
    if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|x| !x.is_finite()) {
        return None;
    }
    let sorted = |sample: &[f64]| {
        let mut sample = sample.to_vec();
        sample.sort_by(f64::total_cmp);
        sample
    };
    let (a, b) = (sorted(a), sorted(b));
    let (mut i, mut j, mut distance) = (0, 0, 0.0_f64);
    while i < a.len() && j < b.len() {
        // Both functions jump at once where the numbers are equal.
        let at = a[i].min(b[j]);
        i += a[i..].iter().take_while(|&&x| x <= at).count();
        j += b[j..].iter().take_while(|&&x| x <= at).count();
        distance = distance.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    let effective = a.len() as f64 * b.len() as f64 / (a.len() + b.len()) as f64;
    Some(TwoSample { distance, p_value: kolmogorov_tail(distance * effective.sqrt()) })
}

/// The probability that Kolmogorov's limit distribution lies above `x`.
fn kolmogorov_tail(x: f64) -> f64 {
    if x < 0.2 {
        return 1.0; // to 12 digits
    }
    if x < 1.0 {
        // The form that converges fast for small x (Jacobi's theta function, transformed).
        let factor = (2.0 * std::f64::consts::PI).sqrt() / x;
        let term =
            |k: i32| (-f64::from((2 * k - 1).pow(2)) * std::f64::consts::PI.powi(2) / (8.0 * x * x)).exp();
        return (1.0 - factor * (1..=4).map(term).sum::<f64>()).clamp(0.0, 1.0);
    }
    let term = |k: i32| (-2.0 * f64::from(k * k) * x * x).exp() * if k % 2 == 1 { 1.0 } else { -1.0 };
    (2.0 * (1..=8).map(term).sum::<f64>()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Draw;

    #[test]
    fn the_limit_distribution_is_scipys() {
        // scipy.stats.kstwobign.sf
        for (x, expected) in [
            (0.3, 0.999_990_694_198_665_5),
            (0.5, 0.963_945_243_664_875_1),
            (0.8276, 0.499_958_416_563_544_6),
            (1.0, 0.269_999_671_677_355_5),
            (1.3581, 0.049_999_630_431_667_4),
            (2.0, 0.000_670_925_230_172_6),
        ] {
            let got = kolmogorov_tail(x);
            assert!((got - expected).abs() < 1e-7, "{x}: {got} is not {expected}");
        }
    }

    #[test]
    fn ties_move_both_functions_at_once() {
        let a = [1.0, 2.0, 2.0, 3.0, 5.0, 8.0, 13.0];
        let b = [2.0, 4.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 20.0];
        // scipy.stats.ks_2samp(a, b).statistic: 4/7 - 1/9
        let got = kolmogorov_smirnov(&a, &b).unwrap();
        assert!((got.distance - (4.0 / 7.0 - 1.0 / 9.0)).abs() < 1e-12, "{got:?}");
        assert_eq!(kolmogorov_smirnov(&b, &a), Some(got));
        assert_eq!(kolmogorov_smirnov(&a, &a).map(|same| (same.distance, same.p_value)), Some((0.0, 1.0)));
        assert_eq!(kolmogorov_smirnov(&a, &[]), None);
        assert_eq!(kolmogorov_smirnov(&a, &[f64::NAN]), None);
    }

    #[test]
    fn one_distribution_is_accepted_as_often_as_promised_and_another_is_not() {
        let sample = |name: &str, index: u64, power: f64| -> Vec<f64> {
            let mut draw = Draw::new(5, name, index);
            (0..400).map(|_| draw.unit().powf(power)).collect()
        };
        let rejected = |power: f64| {
            let tests = (0..400).map(|i| kolmogorov_smirnov(&sample("a", i, 1.0), &sample("b", i, power)));
            tests.flatten().filter(|test| test.p_value < 0.05).count()
        };
        // Binomial(400, 0.05): mean 20, deviation 4.4; the test is a little cautious at this size.
        let falsely = rejected(1.0);
        assert!((4..=36).contains(&falsely), "{falsely} of 400 were rejected");
        assert!(rejected(1.5) > 390);
    }
}
