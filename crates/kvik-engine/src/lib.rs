//! Requests: what to generate or to score, and the loop that does it.
//!
//! An [`Engine`] is a model that is ready to run: weights, tokenizer, chat template, threads. A [`Session`] is one
//! sequence: the keys and values of its tokens, and which tokens those are. [`Engine::generate`] extends a session
//! token by token, [`Engine::score`] says how likely each token of a given text is.
//!
//! The rooms, in the order in which a token passes them: `session` finds the part of the prompt that is cached
//! already, `generate` runs the rest through the model in chunks and then token by token, `sampling` chooses each
//! token from the logits, `log_softmax` turns logits into log-probabilities, `stop` holds back text that may begin a
//! stop string. `constraint` takes out tokens that would break the form that a text must have, and `tool_calls` finds
//! calls of functions in it. `prefix` keeps what prompts have in common for requests that come later, and `service` does
//! all that for many requests at once. `language_model` is the seam to the model below.
//!
//! Results depend on the request alone: not on the number of threads, not on the prefill chunk size, not on what the
//! session held before.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod common_prefix;
mod constraint;
mod engine;
mod error;
mod facts;
mod generate;
mod language_model;
mod lock;
mod log_softmax;
pub mod prefix;
mod randomness;
pub mod sampling;
mod score;
pub mod service;
mod session;
mod stop;
pub mod tool_calls;

pub use constraint::{Constraint, ConstraintCompiler, ConstraintError, ConstraintSource};
pub use engine::{Engine, EngineOptions};
pub use error::EngineError;
pub use facts::EngineFacts;
pub use generate::{Event, GenerateRequest, Generation, StopReason};
pub use log_softmax::TokenLogprob;
pub use prefix::{KvDir, PrefixSharing};
pub use sampling::SamplingOptions;
pub use score::Score;
pub use service::{
    Reply, Request, RequestError, RequestId, Service, ServiceOptions, Status, SubmitError, Timings, Update,
    Usage,
};
pub use session::Session;
pub use stop::EmptyStopString;

pub use kvik_model::layers::Phase;
