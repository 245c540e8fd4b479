//! What of the tree is shown: the nodes that were used last, without what they say.
//!
//! Whoever uses a node uses those that lead to it, so the nodes that were used last are a tree themselves. It is taken from the
//! roots on, the latest node first, so that a large tree costs no more than the children of what is shown.

use std::{collections::BinaryHeap, sync::Arc, time::Instant};

use super::{Node, NodeId, PrefixTree};
use crate::prefix::sharing::Scope;

/// Nodes that are shown of each tree, and trees that are shown.
const MOST_NODES: usize = 32;
const MOST_TREES: usize = 32;

/// The prefixes of those who share with each other.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PrefixTreeStatus {
    /// True if requests of all owners share it.
    pub shared_by_all: bool,
    /// Whose prefixes they are; `None` for requests that came without an owner, and where all share.
    pub owner: Option<String>,
    /// The nodes that were used last. Each stands behind its parent, and before the parent's next child.
    pub nodes: Vec<PrefixNodeStatus>,
    /// Children of the root, shown or not.
    pub children: usize,
}

/// A node of a tree of prefixes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PrefixNodeStatus {
    /// Tells it from all others; whoever comes after it may have the same.
    pub id: u32,
    /// Nodes between the root and this one.
    pub depth: usize,
    /// Tokens that it adds to those of its parent.
    pub tokens: usize,
    /// Tokens from the beginning of a prompt to its end.
    pub prefix_tokens: usize,
    /// Bytes that it adds to those of its parent.
    pub bytes: usize,
    /// Requests that began with a prefix that ends in it.
    pub hits: u64,
    /// Requests that use it right now.
    pub locks: usize,
    /// Children, shown or not.
    pub children: usize,
    /// When a request last used it or what follows it, in seconds of the service's life.
    pub last_used_seconds: f64,
}

impl PrefixTree {
    /// The trees that were used last, and of each the nodes that were. Times count from `start` on.
    pub fn status(&self, start: Instant) -> Vec<PrefixTreeStatus> {
        let mut roots: Vec<(&Scope, NodeId)> =
            self.roots.iter().map(|(scope, &root)| (scope, root)).collect();
        roots.sort_unstable_by_key(|&(_, root)| std::cmp::Reverse(self.node(root).last_used));
        roots.truncate(MOST_TREES);
        let tree = |(scope, root): (&Scope, NodeId)| PrefixTreeStatus {
            shared_by_all: *scope == Scope::Everyone,
            owner: match scope {
                Scope::Owner(owner) => Some(owner.as_ref().to_owned()),
                Scope::Everyone | Scope::Nameless => None,
            },
            nodes: self.nodes_used_last(root, start),
            children: self.node(root).children.len(),
        };
        roots.into_iter().map(tree).collect()
    }

    fn nodes_used_last(&self, root: NodeId, start: Instant) -> Vec<PrefixNodeStatus> {
        let children =
            |id: NodeId| self.node(id).children.values().map(|&child| (self.node(child).last_used, child));
        let mut candidates: BinaryHeap<(u64, NodeId)> = children(root).collect();
        let mut chosen: Vec<NodeId> = Vec::with_capacity(MOST_NODES);
        while chosen.len() < MOST_NODES
            && let Some((_, id)) = candidates.pop()
        {
            chosen.push(id);
            candidates.extend(children(id));
        }
        let mut nodes = Vec::with_capacity(chosen.len());
        // The latest of siblings first, as they were chosen; a stack gives the last one pushed.
        let below = |parent: NodeId| {
            chosen.iter().rev().copied().filter(move |&id| self.node(id).parent == Some(parent))
        };
        let mut next: Vec<(NodeId, usize)> = below(root).map(|id| (id, 0)).collect();
        while let Some((id, depth)) = next.pop() {
            nodes.push(self.node(id).status(id, depth, start));
            next.extend(below(id).map(|id| (id, depth + 1)));
        }
        nodes
    }
}

impl Node {
    fn status(&self, NodeId(id): NodeId, depth: usize, start: Instant) -> PrefixNodeStatus {
        PrefixNodeStatus {
            id,
            depth,
            tokens: self.edge.len(),
            prefix_tokens: self.tokens,
            bytes: self.bytes,
            hits: self.hits,
            locks: Arc::strong_count(&self.lock) - 1,
            children: self.children.len(),
            last_used_seconds: self.used_at.saturating_duration_since(start).as_secs_f64(),
        }
    }
}
