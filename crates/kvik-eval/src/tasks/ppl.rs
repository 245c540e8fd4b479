//! Perplexity behind a long context, through decode.
//!
//! The perplexity of a text that is run as one prompt says nothing about a method that acts at the end of the prompt. Here
//! the first part of each window is prefilled, the method acts, and the tokens that follow are decoded one by one, each
//! given the true ones before it (teacher forcing).

use crate::{
    EvalError,
    item::Item,
    tasks::{Kit, Metric, Plan, Task, windows::windows},
};

/// The task `ppl`.
pub(super) struct Ppl;

impl Task for Ppl {
    fn name(&self) -> &'static str {
        "ppl"
    }

    fn about(&self) -> &'static str {
        "perplexity of Wikipedia text behind a prefilled part, token by token through decode"
    }

    fn metric(&self) -> Metric {
        Metric::Perplexity
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        windows(kit, plan, self.name())
    }
}
