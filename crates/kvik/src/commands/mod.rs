//! The verbs of the command line, one file each.

pub mod bench;
pub mod calibrate;
pub mod chat;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod methods;
pub mod microscope;
pub mod pull;
pub mod replay;
pub mod reproduce;
pub mod score;
pub mod serve;
pub mod tokenize;
pub mod trace;

mod constraint_args;
mod conversation;
mod engine_args;
mod input;
mod interrupt;
mod load_args;
mod model_args;
mod numbers;
mod output;
mod progress;
mod reshape_args;
mod sampling_args;
mod service_args;
mod stream;

/// The user pressed Ctrl-C, and what was being done has ended in good order.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;
