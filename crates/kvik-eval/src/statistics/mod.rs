//! Means with intervals, percentiles, and distances between distributions.

mod bootstrap;
mod divergence;
mod percentile;

pub use bootstrap::{Estimate, Weighted, bootstrap, paired_difference};
pub use divergence::{LogProbabilities, kl_divergence};
pub use percentile::percentile;
