//! The verbs of the command line, one file each.

pub mod inspect;
pub mod pull;
pub mod score;
pub mod tokenize;

mod engine_args;
mod input;
mod model_args;

/// The user pressed Ctrl-C, and what was being done has ended in good order.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;
