//! The HTTP server: OpenAI's API over a running service.
//!
//! A request passes these rooms: `keys` says who sends it and `limits` whether it may; `body` reads it within bounds and
//! `wire` gives it a shape; `generation` checks how it wants to generate, hands it to the service and reads the answers;
//! `routes` has one file for each kind of answer, whole or as server-sent events (`sse`). `error` is what goes wrong, in
//! OpenAI's words. `metrics` counts, `openapi` describes, `config` is all that can be set, and `serve` listens, and ends in
//! good order.
//!
//! Nothing here runs the model: the service has a thread of its own, and what takes the processor before that (chat
//! templates, tokenizers, grammars) runs beside the threads that answer.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod body;
pub mod config;
pub mod error;
pub mod keys;
pub mod limits;
pub mod metrics;
pub mod pipeline;
pub mod sse;
pub mod wire;
