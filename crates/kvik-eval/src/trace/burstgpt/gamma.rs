//! The Gamma distribution: drawing from it, and the most likely one for given numbers.
//!
//! Gaps between requests are Gamma distributed with a shape alpha and a scale beta; alpha below 1 means bursts, and the
//! coefficient of variation is 1 / sqrt(alpha). Drawn with the method of G. Marsaglia and W. W. Tsang ("A simple method
//! for generating gamma variables", 2000); fitted by Newton steps on the likelihood's derivative from T. Minka's start.

use crate::draw::Draw;

/// Shapes outside this range are not told apart by any sample that a window has.
const SHAPES: (f64, f64) = (0.02, 100.0);

/// A number of the standard normal distribution (Box and Muller).
pub fn normal(draw: &mut Draw) -> f64 {
    let radius = (-2.0 * (1.0 - draw.unit()).ln()).sqrt();
    radius * (2.0 * std::f64::consts::PI * draw.unit()).cos()
}

/// A number of the Gamma distribution with `shape` above 0 and scale 1.
pub fn gamma(draw: &mut Draw, shape: f64) -> f64 {
    if shape < 1.0 {
        // Of the next shape, times a power of a uniform number.
        let power = (1.0 - draw.unit()).powf(1.0 / shape);
        return gamma(draw, shape + 1.0) * power;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(draw);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - draw.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// The most likely shape and scale for `numbers`, which must be above 0. `None` for fewer than two, or equal ones.
pub fn fit(numbers: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let (mut count, mut sum, mut logs) = (0.0, 0.0, 0.0);
    for number in numbers {
        count += 1.0;
        sum += number;
        logs += number.ln();
    }
    let mean = sum / count;
    let spread = mean.ln() - logs / count;
    if count < 2.0 || !spread.is_finite() || spread < 1e-9 {
        return None;
    }
    let mut shape = (3.0 - spread + ((spread - 3.0).powi(2) + 24.0 * spread).sqrt()) / (12.0 * spread);
    for _ in 0..30 {
        let step = (shape.ln() - digamma(shape) - spread) / (1.0 / shape - trigamma(shape));
        // The function is convex enough that halving keeps a step in range.
        let next = if step < shape { shape - step } else { shape / 2.0 };
        if (next - shape).abs() < 1e-12 * shape {
            break;
        }
        shape = next;
    }
    let shape = shape.clamp(SHAPES.0, SHAPES.1);
    Some((shape, mean / shape))
}

/// The derivative of the logarithm of the Gamma function.
fn digamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= 1.0 / x;
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    shift + x.ln()
        - 0.5 / x
        - r * (1.0 / 12.0 - r * (1.0 / 120.0 - r * (1.0 / 252.0 - r * (1.0 / 240.0 - r / 132.0))))
}

/// Its derivative.
fn trigamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift += 1.0 / (x * x);
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    shift
        + 1.0 / x
        + 0.5 * r
        + r / x * (1.0 / 6.0 - r * (1.0 / 30.0 - r * (1.0 / 42.0 - r * (1.0 / 30.0 - r * 5.0 / 66.0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_scipys() {
        let points = [0.05, 0.5, 1.0, 3.7, 20.0];
        let digammas =
            [-20.497_844_991_3, -1.963_510_026_021, -0.577_215_664_902, 1.167_153_539_362, 2.970_523_992_242];
        let trigammas = [401.532_357_34, 4.934_802_2, 1.644_934_07, 0.310_037_86, 0.051_270_82];
        for ((x, first), second) in points.into_iter().zip(digammas).zip(trigammas) {
            assert!((digamma(x) - first).abs() < 1e-10 * first.abs().max(1.0), "{x}: {}", digamma(x));
            assert!((trigamma(x) - second).abs() < 1e-7 * second.max(1.0), "{x}: {}", trigamma(x));
        }
    }

    #[test]
    fn the_fit_is_scipys() {
        // scipy.stats.gamma.fit(x, floc=0)
        let numbers = (0..200).map(|i| (f64::from(i) + 0.5).powi(2) / 100.0);
        let (shape, scale) = fit(numbers).unwrap();
        assert!((shape / 0.676_313_736_103 - 1.0).abs() < 1e-6, "{shape}");
        assert!((scale / 197.145_929_296_473 - 1.0).abs() < 1e-6, "{scale}");
        assert_eq!(fit([2.0].into_iter()), None);
        assert_eq!(fit([2.0, 2.0].into_iter()), None);
    }

    #[test]
    fn the_fit_finds_what_was_drawn() {
        for (shape, scale) in [(0.25, 2.0), (0.5, 2.0), (1.0, 0.3), (4.0, 10.0)] {
            let mut draw = Draw::new(3, "gamma", 0);
            let numbers: Vec<f64> = (0..100_000).map(|_| scale * gamma(&mut draw, shape)).collect();
            let (found, found_scale) = fit(numbers.into_iter().map(|x| x.max(1e-300))).unwrap();
            assert!((found / shape - 1.0).abs() < 0.03, "{shape}: {found}");
            assert!((found_scale / scale - 1.0).abs() < 0.03, "{scale}: {found_scale}");
        }
    }
}
