//! How long prompts and answers are, together: the answer's length depends on the prompt's.
//!
//! Three descriptions, from the closest to the shortest. A *table* cuts the requests into cells of equal size by prompt
//! length and keeps the quantiles of prompts and answers in each; it can be anything, two humps included. A *mixture* is a
//! sum of log-normal clouds over both lengths, fitted by expectation and maximisation (A. Dempster, N. Laird, D. Rubin,
//! 1977): two clouds make the two humps of answers, and a cloud's tilt is their correlation. *Zipf* is what BurstGPT's own
//! generator draws: rank-frequency with exponent 1.1 over 1 to 1024 tokens; its mass lies at a few tokens, so it is kept for
//! comparison with runs of that generator, not as a twin.

use serde::{Deserialize, Serialize};

use super::gamma::normal;
use crate::{
    draw::Draw,
    statistics::{percentile, quantiles},
};

/// Cells of a table, at most.
const CELLS: usize = 64;
/// Requests in a cell, at least.
const LEAST_IN_CELL: usize = 24;
/// Quantiles of the prompts and of the answers in a cell.
const QUANTILES: (usize, usize) = (9, 33);
/// Rounds of expectation and maximisation.
const ROUNDS: usize = 60;
/// The narrowest cloud, as a variance of natural logarithms.
const LEAST_VARIANCE: f64 = 1e-3;

/// Tokens of prompts and answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// Quantiles, cell by cell.
    Table(Vec<Cell>),
    /// Log-normal clouds.
    Mixture(Vec<Cloud>),
    /// Truncated Zipf's law for both, without a connection.
    Zipf {
        /// The exponent.
        exponent: f64,
        /// The longest.
        most: u32,
    },
}

/// Requests with prompts of about one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Quantiles of their prompts.
    pub input: Vec<f32>,
    /// Quantiles of their answers.
    pub output: Vec<f32>,
}

/// A two-dimensional normal distribution over the natural logarithms of both lengths.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cloud {
    /// The share of requests in it.
    pub weight: f64,
    /// The means.
    pub mean: [f64; 2],
    /// The variances and, last, the covariance.
    pub variance: [f64; 3],
}

/// Which description to fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LengthLaw {
    /// [`Lengths::Table`].
    #[default]
    Table,
    /// [`Lengths::Mixture`] of so many clouds.
    Mixture(usize),
    /// [`Lengths::Zipf`] as in BurstGPT's generator.
    Zipf,
}

impl Lengths {
    /// What BurstGPT's own generator draws.
    pub const OFFICIAL: Self = Self::Zipf { exponent: 1.1, most: 1024 };

    /// Fitted to `pairs` of prompt and answer lengths, of which there must be one.
    pub fn fit(pairs: &[(u32, u32)], law: LengthLaw) -> Self {
        match law {
            LengthLaw::Table => Self::Table(table(pairs)),
            LengthLaw::Mixture(clouds) => Self::Mixture(mixture(pairs, clouds.max(1))),
            LengthLaw::Zipf => Self::OFFICIAL,
        }
    }

    /// One pair of lengths, at least 1 each.
    pub fn draw(&self, draw: &mut Draw) -> (u32, u32) {
        match self {
            Self::Table(cells) => {
                let Some(cell) = draw.pick(cells) else { return (1, 1) };
                let (input, output) = (draw.unit(), draw.unit());
                (at(&cell.input, input), at(&cell.output, output))
            }
            Self::Mixture(clouds) => {
                let weights: Vec<f64> = clouds.iter().map(|cloud| cloud.weight).collect();
                let chosen = draw.weighted(&weights).map(|cloud| &clouds[cloud]);
                chosen.or(clouds.last()).map_or((1, 1), |cloud| cloud.draw(draw))
            }
            Self::Zipf { exponent, most } => (zipf(*exponent, *most, draw), zipf(*exponent, *most, draw)),
        }
    }

    /// An answer to a prompt of `input` tokens.
    pub fn draw_output(&self, input: u32, draw: &mut Draw) -> u32 {
        match self {
            Self::Table(cells) => {
                let input = input as f32;
                let first = cells.partition_point(|cell| cell.input.last().is_some_and(|&most| most < input));
                // Many prompts of one length fill several cells, and each of these is as good as its share of them.
                let tied = |cell: &&Cell| cell.input.first().is_some_and(|&least| least <= input);
                let shares: Vec<f64> =
                    cells[first..].iter().take_while(tied).map(|cell| cell.share(input)).collect();
                let chosen = first + draw.weighted(&shares).unwrap_or(0);
                let share = draw.unit();
                cells.get(chosen).or(cells.last()).map_or(1, |cell| at(&cell.output, share))
            }
            Self::Mixture(clouds) => {
                let x = f64::from(input.max(1)).ln();
                let weights: Vec<f64> =
                    clouds.iter().map(|cloud| cloud.weight * cloud.input_density(x)).collect();
                let chosen = draw.weighted(&weights).map(|cloud| &clouds[cloud]);
                chosen.or(clouds.last()).map_or(1, |cloud| cloud.draw_output(x, draw))
            }
            Self::Zipf { exponent, most } => zipf(*exponent, *most, draw),
        }
    }
}

fn table(pairs: &[(u32, u32)]) -> Vec<Cell> {
    let mut sorted = pairs.to_vec();
    // By prompts alone: among those of one length, which may fill many cells, answers must not be sorted too, or each of
    // these cells would have its own kind of answers.
    Draw::new(0, "cells", 0).shuffle(&mut sorted);
    sorted.sort_by_key(|pair| pair.0);
    let cells = (sorted.len() / LEAST_IN_CELL).clamp(1, CELLS);
    let cell = |cell: usize| {
        let rows = &sorted[cell * sorted.len() / cells..(cell + 1) * sorted.len() / cells];
        Cell {
            input: quantiles(rows.iter().map(|row| f64::from(row.0)).collect(), QUANTILES.0),
            output: quantiles(rows.iter().map(|row| f64::from(row.1)).collect(), QUANTILES.1),
        }
    };
    (0..cells).map(cell).collect()
}

impl Cell {
    /// About the share of its prompts that have just `input` tokens.
    fn share(&self, input: f32) -> f64 {
        let equal = self.input.iter().filter(|&&quantile| quantile == input).count();
        equal as f64 / self.input.len().max(1) as f64
    }
}

/// The length at `share`, at least 1.
fn at(quantiles: &[f32], share: f64) -> u32 {
    percentile(quantiles, share).map_or(1, |tokens| (tokens.round() as u32).max(1))
}

/// That of BurstGPT's generator draws again when the number is too large, which is the same.
fn zipf(exponent: f64, most: u32, draw: &mut Draw) -> u32 {
    let weights: Vec<f64> = (1..=most).map(|rank| f64::from(rank).powf(-exponent)).collect();
    draw.weighted(&weights).map_or(most.max(1), |place| place as u32 + 1)
}

impl Cloud {
    /// The log-normal cloud of `weight` with these means and coefficients of variation of both lengths, and the
    /// correlation of their logarithms.
    pub fn log_normal(weight: f64, means: [f64; 2], cvs: [f64; 2], correlation: f64) -> Self {
        let variance = cvs.map(|cv| (1.0 + cv * cv).ln());
        let mean = [0, 1].map(|side| means[side].ln() - variance[side] / 2.0);
        let covariance = correlation * (variance[0] * variance[1]).sqrt();
        Self { weight, mean, variance: [variance[0], variance[1], covariance] }
    }

    fn draw(&self, draw: &mut Draw) -> (u32, u32) {
        let x = self.mean[0] + self.variance[0].sqrt() * normal(draw);
        (length(x), self.draw_output(x, draw))
    }

    fn draw_output(&self, x: f64, draw: &mut Draw) -> u32 {
        let [vx, vy, covariance] = self.variance;
        let mean = self.mean[1] + covariance / vx * (x - self.mean[0]);
        length(mean + (vy - covariance * covariance / vx).max(0.0).sqrt() * normal(draw))
    }

    fn input_density(&self, x: f64) -> f64 {
        (-(x - self.mean[0]).powi(2) / (2.0 * self.variance[0])).exp() / self.variance[0].sqrt()
    }

    fn density(&self, at: [f64; 2]) -> f64 {
        let [vx, vy, covariance] = self.variance;
        let determinant = vx * vy - covariance * covariance;
        let (dx, dy) = (at[0] - self.mean[0], at[1] - self.mean[1]);
        let distance = (vy * dx * dx - 2.0 * covariance * dx * dy + vx * dy * dy) / determinant;
        (-distance / 2.0).exp() / determinant.sqrt()
    }

    /// The cloud around `points` with these weights.
    fn around(points: &[[f64; 2]], weights: &[f64], all: f64) -> Self {
        let sum = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let average = |of: &dyn Fn(&[f64; 2]) -> f64| {
            points.iter().zip(weights).map(|(point, weight)| weight * of(point)).sum::<f64>() / sum
        };
        let mean = [average(&|point| point[0]), average(&|point| point[1])];
        let vx = average(&|point| (point[0] - mean[0]).powi(2)).max(LEAST_VARIANCE);
        let vy = average(&|point| (point[1] - mean[1]).powi(2)).max(LEAST_VARIANCE);
        let bound = 0.99 * (vx * vy).sqrt();
        let covariance = average(&|point| (point[0] - mean[0]) * (point[1] - mean[1])).clamp(-bound, bound);
        Self { weight: sum / all, mean, variance: [vx, vy, covariance] }
    }
}

fn length(logarithm: f64) -> u32 {
    logarithm.exp().round().clamp(1.0, f64::from(u32::MAX)) as u32
}

fn mixture(pairs: &[(u32, u32)], clouds: usize) -> Vec<Cloud> {
    let points: Vec<[f64; 2]> = pairs
        .iter()
        .map(|&(input, output)| [f64::from(input.max(1)).ln(), f64::from(output.max(1)).ln()])
        .collect();
    let all = points.len() as f64;
    // Starts with the points cut into shares of equal size, by the answers' lengths: that is where the humps are.
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a][1].total_cmp(&points[b][1]));
    let mut found: Vec<Cloud> = (0..clouds)
        .map(|cloud| {
            let mut weights = vec![0.0; points.len()];
            let share = cloud * points.len() / clouds..((cloud + 1) * points.len() / clouds).max(1);
            order[share].iter().for_each(|&index| weights[index] = 1.0);
            Cloud::around(&points, &weights, all)
        })
        .collect();
    let mut weights = vec![vec![0.0; points.len()]; clouds];
    for _ in 0..ROUNDS {
        for (index, &point) in points.iter().enumerate() {
            let shares: Vec<f64> = found.iter().map(|cloud| cloud.weight * cloud.density(point)).collect();
            let sum = shares.iter().sum::<f64>();
            for (cloud, share) in shares.into_iter().enumerate() {
                weights[cloud][index] = if sum > 0.0 { share / sum } else { 1.0 / clouds as f64 };
            }
        }
        found = weights.iter().map(|weights| Cloud::around(&points, weights, all)).collect();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::kolmogorov_smirnov;

    /// Two humps of answers, and long prompts with long answers in the second.
    fn pairs(count: u64) -> Vec<(u32, u32)> {
        let clouds = [
            Cloud { weight: 0.4, mean: [5.0, 2.0], variance: [0.5, 0.1, 0.0] },
            Cloud { weight: 0.6, mean: [6.0, 5.5], variance: [0.8, 0.3, 0.35] },
        ];
        let truth = Lengths::Mixture(clouds.to_vec());
        (0..count).map(|index| truth.draw(&mut Draw::new(1, "truth", index))).collect()
    }

    fn drawn(lengths: &Lengths, count: u64) -> Vec<(u32, u32)> {
        (0..count).map(|index| lengths.draw(&mut Draw::new(2, "twin", index))).collect()
    }

    fn distance(a: &[(u32, u32)], b: &[(u32, u32)], side: impl Fn(&(u32, u32)) -> u32) -> f64 {
        let numbers =
            |pairs: &[(u32, u32)]| pairs.iter().map(|pair| f64::from(side(pair))).collect::<Vec<_>>();
        kolmogorov_smirnov(&numbers(a), &numbers(b)).unwrap().distance
    }

    /// The correlation of the logarithms.
    fn correlation(pairs: &[(u32, u32)]) -> f64 {
        let logs: Vec<[f64; 2]> = pairs.iter().map(|p| [f64::from(p.0).ln(), f64::from(p.1).ln()]).collect();
        let cloud = Cloud::around(&logs, &vec![1.0; logs.len()], logs.len() as f64);
        cloud.variance[2] / (cloud.variance[0] * cloud.variance[1]).sqrt()
    }

    #[test]
    fn tables_and_mixtures_give_back_both_lengths_and_their_connection() {
        let truth = pairs(8000);
        for law in [LengthLaw::Table, LengthLaw::Mixture(2)] {
            let twin = drawn(&Lengths::fit(&truth, law), 8000);
            // The critical distance at 5 % is 1.36 sqrt(2 / 8000) = 0.0215.
            let (input, output) = (distance(&truth, &twin, |p| p.0), distance(&truth, &twin, |p| p.1));
            assert!(input < 0.0215 && output < 0.0215, "{law:?}: {input} {output}");
            let (wanted, found) = (correlation(&truth), correlation(&twin));
            assert!((wanted - found).abs() < 0.04, "{law:?}: {found} is not {wanted}");
        }
        // One hump is not two, and Zipf is neither.
        let one = drawn(&Lengths::fit(&truth, LengthLaw::Mixture(1)), 8000);
        assert!(distance(&truth, &one, |p| p.1) > 0.1);
        assert!(distance(&truth, &drawn(&Lengths::OFFICIAL, 8000), |p| p.0) > 0.4);
    }

    #[test]
    fn answers_follow_prompts_that_are_given() {
        let truth = pairs(8000);
        let mean_near = |pairs: &[(u32, u32)]| {
            let near: Vec<f64> =
                pairs.iter().filter(|p| (900..1100).contains(&p.0)).map(|p| f64::from(p.1)).collect();
            near.iter().sum::<f64>() / near.len() as f64
        };
        for law in [LengthLaw::Table, LengthLaw::Mixture(2)] {
            let lengths = Lengths::fit(&truth, law);
            let twin: Vec<(u32, u32)> =
                (0..4000).map(|n| (1000, lengths.draw_output(1000, &mut Draw::new(3, "x", n)))).collect();
            let ratio = mean_near(&twin) / mean_near(&truth);
            assert!((0.85..1.15).contains(&ratio), "{law:?}: {ratio}");
        }
    }

    #[test]
    fn prompts_of_one_length_have_all_the_answers_that_they_had() {
        // Three lengths of prompts, as of programs that fill in a form: each fills many cells.
        let kinds = [(100, 0.55, 3.0), (200, 0.3, 5.0), (777, 0.15, 6.5)];
        let row = |index: u64| {
            let mut draw = Draw::new(1, "rows", index);
            let (input, _, mean) = kinds[draw.weighted(&kinds.map(|kind| kind.1)).unwrap()];
            (input, length(mean + 0.5 * normal(&mut draw)))
        };
        let truth: Vec<(u32, u32)> = (0..12_000).map(row).collect();
        let lengths = Lengths::fit(&truth, LengthLaw::Table);
        let twin = drawn(&lengths, 12_000);
        for (input, ..) in kinds {
            let of = |rows: &[(u32, u32)]| -> Vec<f64> {
                rows.iter().filter(|row| row.0 == input).map(|row| f64::from(row.1)).collect()
            };
            let truth = of(&truth);
            let given: Vec<f64> = (0..truth.len() as u64)
                .map(|n| f64::from(lengths.draw_output(input, &mut Draw::new(3, "given", n))))
                .collect();
            for (what, answers) in [("given", given), ("drawn", of(&twin))] {
                let test = kolmogorov_smirnov(&truth, &answers).unwrap();
                assert!(test.p_value > 0.01, "answers to {what} prompts of {input} tokens: {test:?}");
            }
        }
    }

    #[test]
    fn zipf_is_its_formula() {
        let draws = drawn(&Lengths::OFFICIAL, 20_000);
        let sum: f64 = (1..=1024).map(|rank| f64::from(rank).powf(-1.1)).sum();
        for (rank, weight) in [(1, 1.0), (2, 2f64.powf(-1.1)), (10, 10f64.powf(-1.1))] {
            let share = draws.iter().filter(|pair| pair.0 == rank).count() as f64 / 20_000.0;
            assert!((share - weight / sum).abs() < 0.012, "{rank}: {share}");
        }
        assert!(draws.iter().all(|pair| (1..=1024).contains(&pair.1)));
    }

    #[test]
    fn few_requests_and_equal_ones_are_no_trouble() {
        for rows in [vec![(5, 7)], vec![(5, 7); 100], vec![(1, 1), (9, 1)]] {
            for law in [LengthLaw::Table, LengthLaw::Mixture(2)] {
                let (input, output) = Lengths::fit(&rows, law).draw(&mut Draw::new(1, "x", 0));
                assert!(
                    (1..=10).contains(&input) && (1..=8).contains(&output),
                    "{law:?} {rows:?}: {input} {output}"
                );
            }
        }
        assert_eq!(
            Lengths::fit(&vec![(5, 7); 100], LengthLaw::Table).draw(&mut Draw::new(1, "x", 0)),
            (5, 7)
        );
    }

    #[test]
    fn a_log_normal_cloud_has_the_mean_that_it_was_given() {
        let lengths = Lengths::Mixture(vec![Cloud::log_normal(1.0, [600.0, 120.0], [0.8, 0.8], 0.1)]);
        let rows = drawn(&lengths, 50_000);
        let mean = rows.iter().map(|row| f64::from(row.0)).sum::<f64>() / 50_000.0;
        assert!((mean / 600.0 - 1.0).abs() < 0.02, "{mean}");
    }
}
