//! Means with intervals, percentiles, distances between distributions, and whether two samples are of one.

mod bootstrap;
mod divergence;
mod percentile;
mod two_sample;

pub use bootstrap::{Estimate, Weighted, bootstrap, paired_difference};
pub use divergence::{LogProbabilities, kl_divergence};
pub use percentile::{percentile, quantiles};
pub use two_sample::{TwoSample, kolmogorov_smirnov};
