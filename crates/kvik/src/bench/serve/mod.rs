//! How much a server does for many users at once, beside other servers under the same load.
//!
//! A [`Workload`] is what users ask: prompts and answers of lengths within ranges, perhaps behind a system prompt that all
//! share. A [`Level`] is how many ask: so many users who each wait for their answer (closed loop), or so many requests a
//! second, evenly mixed or in bursts (open loop). A [`race`] puts every server under every level in rounds, one server right
//! after the other, so that what else happens on the machine happens to all of them; a peer is set against the first server
//! round by round. No prompt is sent twice to a server, so that only what is meant to be shared is in its cache.

mod race;
mod report;
mod workload;

pub use race::{Contestant, race};
pub use report::{LevelReport, ServeReport, ServerReport};
pub use workload::{Level, Range, Workload};
