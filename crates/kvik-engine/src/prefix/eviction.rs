//! Which prefix goes when there is no room for all.
//!
//! The tree asks for a rank of every leaf that nobody uses, and lets those with the lowest go first. A node becomes a leaf when
//! all that continued it are gone, so that a long conversation is forgotten from its end.

/// What is known of a node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// When it was last found or inserted, in the tree's own time, which counts these events.
    pub last_used: u64,
    /// When it was inserted, in the same time.
    pub created: u64,
    /// How often a prompt began with it.
    pub hits: u64,
    /// Tokens from the root to its end.
    pub tokens: usize,
    /// Bytes of its blocks that the node above does not hold.
    pub bytes: usize,
}

/// Decides which node goes first.
pub trait EvictionPolicy: Send {
    /// The node's rank: the lowest goes first.
    fn rank(&self, node: &NodeFacts) -> u64;
}

/// What was not used for the longest time goes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastRecentlyUsed;

impl EvictionPolicy for LeastRecentlyUsed {
    fn rank(&self, node: &NodeFacts) -> u64 {
        node.last_used
    }
}
