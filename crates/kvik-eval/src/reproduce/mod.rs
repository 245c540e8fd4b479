//! Papers' claims, measured at this machine's scale.
//!
//! An [`Experiment`] states a paper's claim, measures it beside its baselines in one run, and says whether it holds here: what
//! was measured, next to the threshold that it was held to. A claim that does not hold is a result like any other; the exit code
//! of `kvik reproduce` says which it was. [`Lab`] has the verbs that experiments share; a [`Record`] is what is kept of a run, and
//! what the book's table is made from.
//!
//! A new experiment is one file here and one line in [`EXPERIMENTS`].

mod duo;
mod h2o;
mod kivi;
mod lab;
mod minicache;
mod record;
mod scbench;
mod shadowkv;
mod snapkv;
mod tier;

pub use lab::{Lab, Scale};
pub use record::{Finding, Machine, Measurement, Record, table};

use crate::EvalError;

/// One paper's experiment.
pub trait Experiment: Sync {
    /// What the command line calls it: the method's name, mostly.
    fn name(&self) -> &'static str;

    /// Authors, venue, number.
    fn paper(&self) -> &'static str;

    /// What the paper says.
    fn claim(&self) -> &'static str;

    /// What is done here instead of the paper's setting, and why, if anything differs.
    fn setting(&self) -> &'static str;

    /// Measures.
    ///
    /// # Errors
    /// Whatever stops the model, or missing data.
    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError>;
}

/// Every experiment, by name.
pub const EXPERIMENTS: &[&dyn Experiment] = &[
    &duo::Duo,
    &h2o::H2o,
    &kivi::Kivi,
    &minicache::MiniCache,
    &scbench::ScBench,
    &shadowkv::ShadowKvExperiment,
    &snapkv::SnapKv,
    &tier::Tier,
];

/// What an experiment gave.
#[derive(Debug, Default)]
pub struct Results {
    /// Everything that was measured, to be shown.
    pub measurements: Vec<Measurement>,
    /// What decides.
    pub findings: Vec<Finding>,
}

impl Results {
    /// Notes a measurement.
    pub fn measured(&mut self, what: impl Into<String>, kv: impl Into<String>, value: f64, unit: &str) {
        let (what, kv, unit) = (what.into(), kv.into(), unit.to_owned());
        self.measurements.push(Measurement { what, kv, value, interval: None, unit });
    }

    /// Notes a measurement with its 95 % interval.
    pub fn estimated(
        &mut self,
        what: impl Into<String>,
        kv: impl Into<String>,
        estimate: crate::statistics::Estimate,
        unit: &str,
    ) {
        let interval = Some((estimate.low, estimate.high));
        let (what, kv, unit) = (what.into(), kv.into(), unit.to_owned());
        self.measurements.push(Measurement { what, kv, value: estimate.value, interval, unit });
    }

    /// Holds a number to be at least `threshold`.
    pub fn at_least(&mut self, what: impl Into<String>, measured: f64, threshold: f64, unit: &str) {
        let (what, unit) = (what.into(), unit.to_owned());
        self.findings.push(Finding { what, measured, threshold, at_least: true, unit });
    }

    /// Holds a number to be at most `threshold`.
    pub fn at_most(&mut self, what: impl Into<String>, measured: f64, threshold: f64, unit: &str) {
        let (what, unit) = (what.into(), unit.to_owned());
        self.findings.push(Finding { what, measured, threshold, at_least: false, unit });
    }
}

/// The experiment with this name.
///
/// # Errors
/// [`EvalError::UnknownExperiment`] names those that there are.
pub fn find(name: &str) -> Result<&'static dyn Experiment, EvalError> {
    EXPERIMENTS.iter().copied().find(|experiment| experiment.name() == name).ok_or_else(|| {
        let known = EXPERIMENTS.iter().map(|experiment| experiment.name()).collect::<Vec<_>>().join(", ");
        EvalError::UnknownExperiment { name: name.to_owned(), known }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiments_stand_in_order_and_say_what_they_claim() {
        assert!(EXPERIMENTS.windows(2).all(|pair| pair[0].name() < pair[1].name()));
        for experiment in EXPERIMENTS {
            assert!(
                experiment.claim().len() > 40 && experiment.setting().len() > 40,
                "{}",
                experiment.name()
            );
            assert_eq!(find(experiment.name()).unwrap().name(), experiment.name());
        }
        assert!(find("nothing").err().unwrap().to_string().contains("snapkv"));
    }
}
