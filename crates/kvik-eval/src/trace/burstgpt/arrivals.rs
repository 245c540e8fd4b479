//! When requests come: windows of a minute or so, each with its own rate and its own burstiness.
//!
//! In a window the gaps between arrivals are Gamma distributed with a shape alpha and a scale beta, as the BurstGPT paper
//! found; alpha and the rate change from window to window. To let a gap run over the border of two windows, and through a
//! window in which nothing comes, gaps are measured on a clock that advances by one with every expected arrival: there
//! their mean is 1 and only alpha is left. A window's alpha is the most likely one for the gaps that begin in it, together
//! with those of the next windows while they are few.
//!
//! Some services space their requests as no Gamma distribution does, such as by a rate limit of exactly 100 ms. For those
//! a window can keep the observed gaps themselves, and draws from them in random order.

use serde::{Deserialize, Serialize};

use super::gamma::{fit, gamma};
use crate::draw::Draw;

/// Gaps that a shape is fitted to, at least, while there are more.
const LEAST_GAPS: usize = 16;
/// Gaps that a window of observed ones has, at least, while there are more, and those after which it ends before its time,
/// so that a burst stays one.
const OBSERVED: (usize, usize) = (64, 128);
/// On the clock of expected arrivals, gaps below this are simultaneous; a logarithm needs more than 0.
const SIMULTANEOUS: f64 = 1e-6;

/// How gaps within a window are described.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GapLaw {
    /// By the shape of a Gamma distribution.
    #[default]
    Gamma,
    /// By the observed gaps themselves, in random order.
    Observed,
}

/// A stretch of time with one rate and one burstiness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Its length in seconds.
    pub seconds: f64,
    /// Arrivals that are expected in it.
    pub arrivals: f64,
    /// The shape alpha of its gaps; the coefficient of variation is 1 / sqrt(alpha).
    pub alpha: f64,
    /// Its gaps in seconds, from the smallest to the largest; empty when they are Gamma distributed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps_s: Vec<f64>,
}

impl Window {
    /// The scale beta of its gaps in seconds: their mean over their shape. `None` when nothing arrives.
    pub fn beta(&self) -> Option<f64> {
        (self.arrivals > 0.0).then(|| self.seconds / self.arrivals / self.alpha)
    }
}

/// Windows for `arrivals` (in order, within `span_s` seconds) of `window_s` seconds each.
pub fn fit_windows(arrivals: &[f64], span_s: f64, window_s: f64, law: GapLaw) -> Vec<Window> {
    match law {
        GapLaw::Gamma => gamma_windows(arrivals, span_s, window_s),
        GapLaw::Observed => observed_windows(arrivals, span_s, window_s),
    }
}

fn gamma_windows(arrivals: &[f64], span_s: f64, window_s: f64) -> Vec<Window> {
    let count = (span_s / window_s).ceil().max(1.0) as usize;
    // The last window is as long as what is left.
    let seconds = |index: usize| (span_s - index as f64 * window_s).min(window_s).max(f64::MIN_POSITIVE);
    let place = |at: f64| ((at / window_s) as usize).min(count - 1);
    let mut windows: Vec<Window> = (0..count)
        .map(|index| Window { seconds: seconds(index), arrivals: 0.0, alpha: 1.0, gaps_s: Vec::new() })
        .collect();
    arrivals.iter().for_each(|&at| windows[place(at)].arrivals += 1.0);
    // The clock of expected arrivals.
    let passed = windows.iter().scan(0.0, |passed, window| {
        let start = *passed;
        *passed += window.arrivals;
        Some(start)
    });
    let starts: Vec<f64> = passed.collect();
    let clock = |at: f64| {
        let index = place(at);
        starts[index] + windows[index].arrivals * (at - index as f64 * window_s) / windows[index].seconds
    };
    let gap = |pair: &[f64]| ((clock(pair[1]) - clock(pair[0])).max(SIMULTANEOUS), place(pair[0]));
    let gaps: Vec<(f64, usize)> = arrivals.windows(2).map(gap).collect();
    let mut alphas = vec![1.0; count];
    let (mut from, mut known) = (0, 1.0);
    while from < gaps.len() {
        // Whole windows, until there are enough gaps to say something; what is left at the end goes with the last ones.
        let mut end = from;
        while end < gaps.len() && (end - from < LEAST_GAPS || gaps[end].1 == gaps[end - 1].1) {
            end += 1;
        }
        if end - from >= LEAST_GAPS || from == 0 {
            known = fit(gaps[from..end].iter().map(|gap| gap.0)).map_or(known, |(shape, _)| shape);
        }
        let last = if end == gaps.len() { count - 1 } else { gaps[end - 1].1 };
        alphas[gaps[from].1..=last].fill(known);
        from = end;
    }
    windows.iter_mut().zip(alphas).for_each(|(window, alpha)| window.alpha = alpha);
    windows
}

fn observed_windows(arrivals: &[f64], span_s: f64, window_s: f64) -> Vec<Window> {
    let silence = |seconds: f64| Window { seconds, arrivals: 0.0, alpha: 1.0, gaps_s: Vec::new() };
    let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut windows: Vec<Window> = Vec::new();
    let mut from = 0;
    while from < gaps.len() {
        let (mut end, mut seconds) = (from, 0.0);
        while end < gaps.len() && (end - from < OBSERVED.0 || (end - from < OBSERVED.1 && seconds < window_s))
        {
            seconds += gaps[end];
            end += 1;
        }
        // A rest that is too small to stand alone.
        if gaps.len() - end < OBSERVED.0 {
            seconds += gaps[end..].iter().sum::<f64>();
            end = gaps.len();
        }
        let mut sorted = gaps[from..end].to_vec();
        sorted.sort_by(f64::total_cmp);
        let alpha = fit(sorted.iter().map(|gap| gap.max(1e-9))).map_or(1.0, |(shape, _)| shape);
        windows.push(Window { seconds, arrivals: (end - from) as f64, alpha, gaps_s: sorted });
        from = end;
    }
    // A class that comes late, or ends early.
    if let ([first, .., last], false) = (arrivals, windows.is_empty()) {
        if *first > 0.0 {
            windows.insert(0, silence(*first));
        }
        if *last < span_s {
            windows.push(silence(span_s - last));
        }
    }
    windows
}

/// Arrivals for `seconds` seconds at `factor` times the rate of `windows`, which repeat as often as needed. Every gap is a
/// function of (seed, `stream`, its number).
pub fn draw_arrivals(windows: &[Window], seconds: f64, factor: f64, seed: u64, stream: &str) -> Vec<f64> {
    if seconds <= 0.0 || !windows.iter().any(|window| window.arrivals > 0.0 && window.seconds > 0.0) {
        return Vec::new();
    }
    if windows.iter().any(|window| !window.gaps_s.is_empty()) {
        return observed_arrivals(windows, seconds, factor, seed, stream);
    }
    let mut arrivals = Vec::new();
    let mut cycle = windows.iter().cycle();
    // Where the window starts, and how much of its clock has run.
    let (mut start, mut run) = (0.0, 0.0);
    let Some(mut window) = cycle.next() else { return arrivals };
    for number in 0.. {
        let mut draw = Draw::new(seed, stream, number);
        let mut gap = gamma(&mut draw, window.alpha) / window.alpha;
        // A process that runs already: the first gap is one that time 0 fell into, so it has begun before.
        if number == 0 {
            gap *= draw.unit();
        }
        while run + gap > window.arrivals * factor {
            gap -= window.arrivals * factor - run;
            start += window.seconds;
            run = 0.0;
            if start >= seconds {
                return arrivals;
            }
            window = cycle.next().unwrap_or(window);
        }
        run += gap;
        let at = start + window.seconds * run / (window.arrivals * factor);
        if at >= seconds {
            return arrivals;
        }
        arrivals.push(at);
    }
    arrivals
}

fn observed_arrivals(windows: &[Window], seconds: f64, factor: f64, seed: u64, stream: &str) -> Vec<f64> {
    // The first arrival begins the first gap, but for where a silence begins.
    let (mut arrivals, mut at) = (Vec::new(), 0.0);
    if windows.first().is_some_and(|window| window.arrivals > 0.0) {
        arrivals.push(0.0);
    }
    for (number, window) in windows.iter().cycle().enumerate() {
        let mut draw = Draw::new(seed, stream, number as u64);
        // Each share of the distribution gives one gap, so that a window has neither more nor fewer long ones by chance.
        let expected = window.arrivals * factor;
        let count = expected.floor() as usize + usize::from(draw.unit() < expected.fract());
        let kept = window.gaps_s.len();
        let share = |share: usize, draw: &mut Draw| (share as f64 + draw.unit()) / count as f64 * kept as f64;
        let mut gaps: Vec<f64> =
            (0..count).filter_map(|at| window.gaps_s.get(share(at, &mut draw) as usize).copied()).collect();
        // The window keeps its length whatever the factor.
        let sum: f64 = gaps.iter().sum();
        let scale = if sum > 0.0 { window.seconds / sum * count as f64 / expected.max(1.0) } else { 1.0 };
        draw.shuffle(&mut gaps);
        for gap in gaps {
            at += gap * scale;
            if at >= seconds {
                return arrivals;
            }
            arrivals.push(at);
        }
        if count == 0 {
            at += window.seconds;
        }
        if at >= seconds {
            return arrivals;
        }
    }
    arrivals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::kolmogorov_smirnov;

    fn window(seconds: f64, arrivals: f64, alpha: f64) -> Window {
        Window { seconds, arrivals, alpha, gaps_s: Vec::new() }
    }

    fn gaps(arrivals: &[f64]) -> Vec<f64> {
        arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[test]
    fn what_was_drawn_is_found_again_window_by_window() {
        let truth: Vec<Window> = (0..40)
            .map(|w| window(300.0, if w % 2 == 0 { 1500.0 } else { 300.0 }, if w < 20 { 0.3 } else { 2.0 }))
            .collect();
        let arrivals = draw_arrivals(&truth, 12_000.0, 1.0, 1, "a");
        // 36,000 expected; the deviation of a renewal process is sqrt(n / alpha).
        assert!(
            (arrivals.len() as f64 - 36_000.0).abs() < 6.0 * (36_000.0_f64 / 0.3).sqrt(),
            "{}",
            arrivals.len()
        );
        let found = fit_windows(&arrivals, 12_000.0, 300.0, GapLaw::Gamma);
        assert_eq!(found.len(), 40);
        let mean = |range: std::ops::Range<usize>| {
            let length = range.len() as f64;
            found[range].iter().map(|window| window.alpha).sum::<f64>() / length
        };
        assert!(
            (mean(0..20) - 0.3).abs() < 0.02 && (mean(20..40) - 2.0).abs() < 0.15,
            "{} {}",
            mean(0..20),
            mean(20..40)
        );
        let again = draw_arrivals(&found, 12_000.0, 1.0, 2, "a");
        let test = kolmogorov_smirnov(&gaps(&arrivals), &gaps(&again)).unwrap();
        assert!(test.distance < 0.02, "{test:?}");
        let even: Vec<Window> = found.iter().map(|w| window(w.seconds, w.arrivals, 1.0)).collect();
        let poisson = draw_arrivals(&even, 12_000.0, 1.0, 2, "a");
        let test = kolmogorov_smirnov(&gaps(&arrivals), &gaps(&poisson)).unwrap();
        assert!(test.distance > 0.1 && test.p_value < 1e-9, "{test:?}");
    }

    #[test]
    fn rates_scale_windows_repeat_and_silence_stays_silent() {
        let windows = [window(10.0, 20.0, 1.0), window(10.0, 0.0, 1.0)];
        for law in [GapLaw::Gamma, GapLaw::Observed] {
            let windows = match law {
                GapLaw::Gamma => windows.to_vec(),
                GapLaw::Observed => {
                    vec![Window { gaps_s: vec![0.25, 0.5, 0.75], ..windows[0].clone() }, windows[1].clone()]
                }
            };
            let arrivals = draw_arrivals(&windows, 4000.0, 3.0, 1, "a");
            assert!((arrivals.len() as f64 - 12_000.0).abs() < 6.0 * 110.0, "{law:?}: {}", arrivals.len());
            assert!(arrivals.is_sorted() && arrivals.last().is_some_and(|&last| last < 4000.0));
            if law == GapLaw::Gamma {
                assert!(arrivals.iter().all(|at| at % 20.0 <= 10.0));
            }
            assert_eq!(draw_arrivals(&windows, 4000.0, 3.0, 1, "a"), arrivals);
            assert_ne!(draw_arrivals(&windows, 4000.0, 3.0, 1, "b"), arrivals);
        }
        assert!(draw_arrivals(&windows[1..], 100.0, 1.0, 1, "a").is_empty());
        assert!(draw_arrivals(&[], 100.0, 1.0, 1, "a").is_empty());
    }

    #[test]
    fn a_few_requests_are_enough_and_none_are_too() {
        for arrivals in [vec![], vec![1.0], vec![1.0, 2.0], vec![1.0, 1.0, 1.0]] {
            for law in [GapLaw::Gamma, GapLaw::Observed] {
                for window in fit_windows(&arrivals, 3.0, 60.0, law) {
                    assert!(window.alpha > 0.0 && window.alpha.is_finite(), "{arrivals:?}: {window:?}");
                }
            }
        }
    }
}
