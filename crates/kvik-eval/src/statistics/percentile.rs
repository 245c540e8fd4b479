//! Percentiles of sorted numbers, and distributions that are kept as a few of them.

/// The number below which a `share` (0 to 1) of `sorted` lies, with straight lines between neighbours (the definition of
/// NumPy's default). `None` when there are no numbers.
pub fn percentile<T: Copy + Into<f64>>(sorted: &[T], share: f64) -> Option<f64> {
    let place = share.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[place.floor() as usize].into(), sorted[place.ceil() as usize].into());
    Some(below + (above - below) * place.fract())
}

/// `count` percentiles of `numbers` at even distances, the smallest and the largest number among them: their distribution
/// in short, of which [`percentile`] gives any number back. None when there are no numbers.
pub fn quantiles(mut numbers: Vec<f64>, count: usize) -> Vec<f32> {
    numbers.sort_by(f64::total_cmp);
    let steps = count.saturating_sub(1).max(1) as f64;
    (0..count).filter_map(|point| percentile(&numbers, point as f64 / steps)).map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::{percentile, quantiles};

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8], [0, 25, 50, 90, 100])
        let numbers = [1.0, 2.0, 4.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            let got = percentile(&numbers, share).unwrap();
            assert!((got - expected).abs() < 1e-12, "{share}: {got}");
        }
        assert_eq!((percentile::<f64>(&[], 0.5), percentile(&[3.0], 0.9)), (None, Some(3.0)));
    }
    #[test]
    fn quantiles_keep_a_distribution_in_short() {
        let kept = quantiles((0..=1000).rev().map(f64::from).collect(), 5);
        assert_eq!(kept, [0.0, 250.0, 500.0, 750.0, 1000.0]);
        assert_eq!(percentile(&kept, 0.1), Some(100.0));
        assert!(quantiles(Vec::new(), 5).is_empty());
    }
}
