//! Prefixes: what prompts have in common is computed once.
//!
//! Most prompts of a server begin alike: with the same system prompt, the same document, the turns before this one. The
//! [`PrefixTree`] holds the caches of such beginnings for as long as there is room, and the folder of [`KvDir`] holds them beyond
//! the end of the process. [`PrefixCache`] is both together, as serving asks for them; [`PrefixSharing`] says who shares with
//! whom, and an [`EvictionPolicy`] what goes first.

mod cache;
mod eviction;
mod sharing;
mod store;
mod tree;

pub(crate) use cache::check_block_tokens;
pub use cache::{Begun, Loading, PrefixCache, PrefixError, PrefixOptions, PrefixStatistics};
pub use eviction::{EvictionPolicy, LeastRecentlyUsed, NodeFacts};
pub use sharing::{PrefixSharing, Scope};
pub use store::{DiskStatistics, KvDir, Report, StoreError};
pub use tree::{Inserted, NodeId, PrefixLock, PrefixMatch, PrefixNodeStatus, PrefixTree, PrefixTreeStatus};
