//! Load on a server, and what it did to those who waited.
//!
//! Load comes in two shapes. *Open loop*: requests are sent when they are due, whatever the server does, as the world does
//! it; a server that cannot keep up builds a queue, and the queue is seen. *Closed loop*: so many users each wait for their
//! answer before they ask again, which measures what a server can do but hides its queues (coordinated omission).
//! [`drive`] does either, [`watch`] looks at the server's own counters meanwhile, and [`LoadReport`] is what came of it:
//! throughput, latencies, service levels that were kept, what caches gave, what failed, and all of that over time.

mod drive;
mod material;
mod summary;
mod watch;

pub use drive::{Pace, Progress, Slot, drive};
pub use material::material;
pub use summary::{Failure, Levels, LoadReport, Milliseconds, Moment, ServerCounts, Throughput, Tokens};
pub use watch::{Sample, watch};
