//! How far the next-token distribution moves from the full cache's, position by position.
//!
//! The same windows as for `ppl`, but the yardstick is not the text: it is what the same model says with everything in
//! its cache. The divergence sees changes that a right answer hides. Percentiles tell a cache that is a little wrong
//! everywhere from one that is badly wrong at a few places; top-1 agreement says how often greedy decoding would go on
//! alike.

use crate::{
    EvalError,
    item::Item,
    tasks::{Kit, Metric, Plan, Task, windows::windows},
};

/// The task `kl`.
pub(super) struct Kl;

impl Task for Kl {
    fn name(&self) -> &'static str {
        "kl"
    }

    fn about(&self) -> &'static str {
        "KL divergence and top-1 agreement with the full cache, per position, with percentiles"
    }

    fn metric(&self) -> Metric {
        Metric::Divergence
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        windows(kit, plan, self.name())
    }
}
