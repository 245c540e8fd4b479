//! The HTTP server: OpenAI's API over a running service.
//!
//! A request passes these rooms: `keys` says who sends it and `limits` whether it may; `body` reads it within bounds and
//! `wire` gives it a shape; `generation` checks how it wants to generate, hands it to the service and reads the answers;
//! `routes` has one file for each kind of answer, whole or as server-sent events (`sse`). `error` is what goes wrong, in
//! OpenAI's words. `metrics` counts, `openapi` describes, `pages` shows, `config` is all that can be set, and `serve` listens, and ends in
//! good order.
//!
//! Nothing here runs the model: the service has a thread of its own, and what takes the processor before that (chat
//! templates, tokenizers, grammars) runs beside the threads that answer.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod app;
mod body;
pub mod config;
mod error;
mod generation;
pub mod keys;
pub mod limits;
pub mod log;
mod metrics;
mod openapi;
pub mod pages;
mod pipeline;
mod routes;
mod serve;
mod sse;
mod wire;

pub use app::App;
pub use openapi::description;
pub use routes::router;
pub use serve::{Server, signals};
