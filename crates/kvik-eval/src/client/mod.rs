//! A client that measures: requests to a server that speaks OpenAI's API, with the times at which their tokens came.
//!
//! [`Endpoint`] is where the server is, [`SseParser`] finds the events of a stream, and [`Target`] asks: it sends one request
//! for a completion, reads the stream to its end and keeps an [`Exchange`] of what happened when. Nothing that a server does
//! is an error of the client: refusals, silence, broken connections and nonsense are [`Outcome`]s, to be counted.
//!
//! It works with every server that streams `/v1/completions` or `/v1/chat/completions`, llama.cpp's and vLLM among them. Tokens
//! are counted from the usage that comes at the end of a stream, or, without one, from the pieces.

mod endpoint;
mod exchange;
mod sse;
mod target;

pub use endpoint::{CallError, Endpoint, EndpointError};
pub use exchange::{Exchange, Outcome};
pub use sse::{SseError, SseParser};
pub use target::{Api, Ask, Target};
