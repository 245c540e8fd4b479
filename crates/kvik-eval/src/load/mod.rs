//! Load on a server, and what it did to those who waited.
//!
//! Load comes in two shapes. *Open loop*: requests are sent when they are due, whatever the server does, as the world does
//! it; a server that cannot keep up builds a queue, and the queue is seen. *Closed loop*: so many users each wait for their
//! answer before they ask again, which measures what a server can do but hides its queues (coordinated omission).
//! [`drive`] does either, [`watched`] looks at the own counters of whoever answers meanwhile, [`replay`] does both with the
//! requests of a trace, and [`LoadReport`] is what came of it: throughput, latencies, service levels that were kept, what
//! caches gave, what failed, and all of that over time.

mod drive;
mod material;
mod replay;
mod summary;
mod watch;

pub use drive::{Pace, Progress, Slot, Turn, drive};
pub use material::material;
pub use replay::{Replay, replay};
pub use summary::{Failure, Levels, LoadReport, Milliseconds, Moment, ServerCounts, Throughput, Tokens};
pub use watch::watched;
