//! How fast Kvik is: against this machine's limits, and against other engines.
//!
//! A speed is only worth writing down beside what it could be and what others get, measured in the same minutes on
//! the same machine. So every measurement here comes in rounds: a round measures the machine's limits ([`limits`]),
//! then figure by figure Kvik ([`subject`]) and its peers ([`peer`]), one after the other. A figure is reported as the
//! median over the rounds with the smallest and the largest, and so is its ratio to a peer, taken round by round.
//!
//! What a figure could be follows from its [`work`]: the bytes that it has to read and the operations that it has to
//! do, over what the machine reads and does in a second.

pub mod figure;
pub mod kernels;
pub mod limits;
pub mod peer;
pub mod serve;
pub mod speed;
pub mod spread;
pub mod subject;
pub mod table;
pub mod work;
