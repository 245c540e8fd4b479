//! A client that measures: requests for completions, with the times at which their tokens came.
//!
//! Who answers is a [`Target`]: [`HttpTarget`] is a server that speaks OpenAI's API, behind an [`Endpoint`] whose streams
//! [`SseParser`] cuts into events, and [`EngineTarget`] an engine in this process, without a server between. Either sends one
//! request for a completion, reads the answer to its end, keeps an [`Exchange`] of what happened when, and tells its own
//! counters as a [`Sample`]. Nothing that a target does is an error of the client: refusals, silence, broken connections and
//! nonsense are [`Outcome`]s, to be counted.

mod endpoint;
mod engine;
mod exchange;
mod http;
mod sample;
mod sse;
mod target;

pub use endpoint::{CallError, Endpoint, EndpointError};
pub use engine::{EngineRequest, EngineTarget};
pub use exchange::{Exchange, Outcome};
pub use http::{Api, HttpRequest, HttpTarget};
pub use sample::Sample;
pub use sse::{SseError, SseParser};
pub use target::{Ask, Target};
