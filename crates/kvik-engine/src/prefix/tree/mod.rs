//! The tree of prefixes: what prompts had in common, each of it cached once.
//!
//! A node stands for some tokens behind those of its parent, whole blocks of them, and holds the cache of all tokens from the
//! root to its end; the blocks of the parent's part are the parent's. Children differ in their first block. Verbs, in the order of
//! a request's life: [`find`](PrefixTree::find) the longest prefix of a prompt, [`lock`](PrefixTree::lock) it while it is in use,
//! [`insert`](PrefixTree::insert) the prompt once it was read, [`evict`](PrefixTree::evict) when bytes are wanted. A prefix may
//! end anywhere in a node: what is found is as long as the tokens agree, to the token.
//!
//! The idea is the radix tree of "SGLang: Efficient Execution of Structured Language Model Programs" (Zheng et al., NeurIPS 2024,
//! arXiv 2312.07104); nodes end at blocks, as in "Efficient Memory Management for Large Language Model Serving with
//! PagedAttention" (Kwon et al., SOSP 2023, arXiv 2309.06180), so that what a node adds lies in blocks of its own.
//!
//! Models with sliding windows hold the last rows only, so their prefixes can be had where a node ends and hardly in between.

mod check;
mod status;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    ops::Bound,
    sync::Arc,
    time::Instant,
};

pub use self::status::{PrefixNodeStatus, PrefixTreeStatus};
use kvik_kernels::attention::TILE_TOKENS;
use kvik_kv::{KvStore, SequenceCache};

use super::{
    eviction::{EvictionPolicy, NodeFacts},
    sharing::Scope,
};
use crate::common_prefix::common_prefix;

/// A node, as long as it is in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// A prefix that is in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// The node whose cache begins with it.
    pub node: NodeId,
    /// Its tokens.
    pub tokens: usize,
}

/// Keeps a node in the tree until it is dropped.
#[derive(Clone, Debug)]
pub struct PrefixLock {
    _held: Arc<()>,
}

/// What an insertion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The node that ends with the last whole block, or the last one before that could be held.
    pub node: NodeId,
    /// The node that ends where the prompt parts from an earlier one, if it is new.
    pub branch: Option<NodeId>,
}

struct Node {
    /// `None` for a root.
    parent: Option<NodeId>,
    /// Tokens behind those of the parent; whole blocks.
    edge: Arc<[u32]>,
    /// Tokens from the root to its end.
    tokens: usize,
    /// By their edges: the longest common prefix with other tokens is that of a neighbour in this order.
    children: BTreeMap<Arc<[u32]>, NodeId>,
    /// Exact, of all tokens from the root; `None` for a root, and where a sliding window has left rows behind.
    cache: Option<SequenceCache>,
    bytes: usize,
    table_bytes: usize,
    lock: Arc<()>,
    created: u64,
    last_used: u64,
    used_at: Instant,
    hits: u64,
    /// Nobody has to write it to a disk any more.
    settled: bool,
}

impl Node {
    fn new(parent: Option<NodeId>, edge: Arc<[u32]>, tokens: usize, now: u64) -> Self {
        Self {
            parent,
            edge,
            tokens,
            children: BTreeMap::new(),
            cache: None,
            bytes: 0,
            table_bytes: 0,
            lock: Arc::new(()),
            created: now,
            last_used: now,
            used_at: Instant::now(),
            hits: 0,
            settled: false,
        }
    }

    fn locked(&self) -> bool {
        Arc::strong_count(&self.lock) > 1
    }

    fn facts(&self) -> NodeFacts {
        let Self { last_used, created, hits, tokens, bytes, .. } = *self;
        NodeFacts { last_used, created, hits, tokens, bytes }
    }

    /// The child whose edge has the longest beginning in common with `tokens`, and how long that is.
    fn nearest_child(&self, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let before = self.children.range::<[u32], _>((Bound::Unbounded, Bound::Included(tokens))).next_back();
        let after = self.children.range::<[u32], _>((Bound::Excluded(tokens), Bound::Unbounded)).next();
        let common = |(edge, &id): (&Arc<[u32]>, &NodeId)| (id, common_prefix(edge, tokens));
        [before, after].into_iter().flatten().map(common).max_by_key(|(_, common)| *common)
    }
}

/// Prefixes of prompts; see the module.
pub struct PrefixTree {
    block_tokens: usize,
    policy: Box<dyn EvictionPolicy>,
    roots: HashMap<Scope, NodeId>,
    nodes: Vec<Option<Node>>,
    free: Vec<NodeId>,
    /// Counts what is found and inserted.
    now: u64,
    bytes: usize,
    table_bytes: usize,
}

impl PrefixTree {
    /// An empty tree whose nodes end at multiples of `block_tokens` tokens.
    ///
    /// # Panics
    /// If `block_tokens` is no positive multiple of [`TILE_TOKENS`].
    pub fn new(block_tokens: usize, policy: Box<dyn EvictionPolicy>) -> Self {
        assert!(
            block_tokens > 0 && block_tokens.is_multiple_of(TILE_TOKENS),
            "blocks of the tree are whole tiles"
        );
        let (roots, nodes, free) = (HashMap::new(), Vec::new(), Vec::new());
        Self { block_tokens, policy, roots, nodes, free, now: 0, bytes: 0, table_bytes: 0 }
    }

    /// Bytes of the blocks that the tree holds, those that sequences in use hold as well included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the tables that say which blocks are whose.
    pub fn table_bytes(&self) -> usize {
        self.table_bytes
    }

    /// Nodes that hold a prefix.
    pub fn nodes(&self) -> usize {
        self.nodes.iter().flatten().filter(|node| node.cache.is_some()).count()
    }

    /// Tokens whose keys and values the tree holds, those of common prefixes counted once.
    pub fn tokens(&self) -> usize {
        self.nodes.iter().flatten().map(|node| node.edge.len()).sum()
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.0 as usize].as_ref().expect("links lead to nodes of the tree")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("links lead to nodes of the tree")
    }

    /// The cache that a node holds: all tokens from the root to its end.
    pub fn cache(&self, id: NodeId) -> Option<&SequenceCache> {
        self.node(id).cache.as_ref()
    }

    /// The longest prefix of `prompt` with at most `limit` tokens that a sequence can begin with.
    pub fn find(&self, store: &KvStore, scope: &Scope, prompt: &[u32], limit: usize) -> Option<PrefixMatch> {
        let prompt = &prompt[..limit.min(prompt.len())];
        let (mut node, mut depth) = (self.node(*self.roots.get(scope)?), 0);
        let mut best = None;
        while let Some((child, common)) = node.nearest_child(&prompt[depth..]).filter(|found| found.1 > 0) {
            let next = self.node(child);
            let tokens = depth + common;
            if next.cache.as_ref().is_some_and(|cache| cache.reaches(store, tokens)) {
                best = Some(PrefixMatch { node: child, tokens });
            }
            if common < next.edge.len() {
                break;
            }
            (node, depth) = (next, tokens);
        }
        best
    }

    /// Whole blocks of `prompt`, in tokens, that the tree knows, whether or not it holds a cache that ends with them.
    pub fn known(&self, scope: &Scope, prompt: &[u32]) -> usize {
        let Some(&root) = self.roots.get(scope) else { return 0 };
        let (mut node, mut depth) = (self.node(root), 0);
        while let Some((child, common)) = node.nearest_child(&prompt[depth..]) {
            let next = self.node(child);
            if common < next.edge.len() {
                return depth + self.whole_blocks(common);
            }
            (node, depth) = (next, depth + common);
        }
        depth
    }

    /// Counts a use of a node, and keeps it in the tree until the lock is dropped.
    pub fn lock(&mut self, id: NodeId) -> PrefixLock {
        self.touch(id);
        self.node_mut(id).hits += 1;
        self.pin(id)
    }

    /// Keeps a node in the tree until the lock is dropped, without a use.
    pub fn pin(&self, id: NodeId) -> PrefixLock {
        PrefixLock { _held: Arc::clone(&self.node(id).lock) }
    }

    /// What ends with a node was used now.
    fn touch(&mut self, id: NodeId) {
        self.now += 1;
        let (now, used_at, mut next) = (self.now, Instant::now(), Some(id));
        while let Some(id) = next {
            let node = self.node_mut(id);
            (node.last_used, node.used_at) = (now, used_at);
            next = node.parent;
        }
    }

    /// Takes in the whole blocks of `tokens`, which `source` begins with and has not rewritten. `None` if there is no whole block, or
    /// `source` cannot give them.
    pub fn insert(
        &mut self,
        store: &mut KvStore,
        scope: &Scope,
        tokens: &[u32],
        source: &SequenceCache,
    ) -> Option<Inserted> {
        let blocks = tokens.len().min(source.len()) / self.block_tokens;
        // What a window has left behind, only longer beginnings do without.
        let blocks = (1..=blocks).rev().find(|blocks| source.reaches(store, blocks * self.block_tokens))?;
        let tokens = &tokens[..blocks * self.block_tokens];
        let mut id = self.root(scope);
        let mut branch = None;
        loop {
            let depth = self.node(id).tokens;
            let rest = &tokens[depth..];
            let found = self.node(id).nearest_child(rest);
            let (child, common) = match found.map(|(child, common)| (child, self.whole_blocks(common))) {
                Some(found) if found.1 > 0 => found,
                _ if rest.is_empty() => break,
                _ => {
                    if !self.grow_leaf(store, id, rest, source) {
                        id = self.add_leaf(id, rest);
                    }
                    break;
                }
            };
            if common < self.node(child).edge.len() {
                id = self.split(store, child, common, source);
                branch = Some(id);
            } else {
                id = child;
            }
        }
        self.give_cache(store, id, source);
        self.touch(id);
        Some(Inserted { node: id, branch: branch.filter(|&branch| branch != id) })
    }

    fn whole_blocks(&self, tokens: usize) -> usize {
        tokens / self.block_tokens * self.block_tokens
    }

    fn root(&mut self, scope: &Scope) -> NodeId {
        if let Some(&root) = self.roots.get(scope) {
            return root;
        }
        let root = self.place(Node::new(None, Arc::from([]), 0, self.now));
        self.roots.insert(scope.clone(), root);
        root
    }

    fn place(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.free.pop() {
            self.nodes[id.0 as usize] = Some(node);
            return id;
        }
        self.nodes.push(Some(node));
        NodeId(self.nodes.len() as u32 - 1)
    }

    fn add_leaf(&mut self, parent: NodeId, edge: &[u32]) -> NodeId {
        let edge: Arc<[u32]> = Arc::from(edge);
        let tokens = self.node(parent).tokens + edge.len();
        let leaf = self.place(Node::new(Some(parent), Arc::clone(&edge), tokens, self.now + 1));
        self.node_mut(parent).children.insert(edge, leaf);
        leaf
    }

    /// Lets a leaf end `more` tokens later, if what `source` has serves those who want the shorter prefix as well. So a prompt that
    /// is read chunk by chunk has one table and not one for each chunk.
    fn grow_leaf(&mut self, store: &mut KvStore, id: NodeId, more: &[u32], source: &SequenceCache) -> bool {
        let Node { parent: Some(parent), cache: Some(cache), edge, tokens, children, .. } = self.node(id)
        else {
            return false;
        };
        if !children.is_empty() || !source.reaches(store, *tokens) {
            return false;
        }
        let (parent, shorter, tokens) = (*parent, Arc::clone(edge), tokens + more.len());
        let Some(cache) = source.exact_prefix(store, tokens, Some(cache)) else { return false };
        let longer: Arc<[u32]> = [&shorter, more].concat().into();
        let above = self.node_mut(parent);
        above.children.remove(&shorter);
        above.children.insert(Arc::clone(&longer), id);
        let node = self.node_mut(id);
        (node.edge, node.tokens, node.settled) = (longer, tokens, false);
        let table_bytes = std::mem::take(&mut node.table_bytes);
        self.table_bytes -= table_bytes;
        self.hold(store, id, cache);
        store.reclaim();
        true
    }

    /// Puts a node between `lower` and its parent, `common` tokens behind the parent.
    fn split(&mut self, store: &mut KvStore, lower: NodeId, common: usize, source: &SequenceCache) -> NodeId {
        let Node { parent, edge, last_used, used_at, .. } = self.node(lower);
        let (parent, edge, last_used, used_at) = (*parent, Arc::clone(edge), *last_used, *used_at);
        let parent = parent.expect("a root has no edge to split");
        self.node_mut(parent).children.remove(&edge);
        let upper = self.add_leaf(parent, &edge[..common]);
        let rest: Arc<[u32]> = Arc::from(&edge[common..]);
        let node = self.node_mut(upper);
        (node.last_used, node.used_at) = (last_used, used_at);
        node.children.insert(Arc::clone(&rest), lower);
        let tokens = node.tokens;
        let node = self.node_mut(lower);
        (node.parent, node.edge) = (Some(upper), rest);
        // Its rows are those that the lower node holds already, if it still has them.
        let own = self.node(lower).cache.as_ref().and_then(|cache| cache.exact_prefix(store, tokens, None));
        match own {
            Some(cache) => self.hold(store, upper, cache),
            None => self.give_cache(store, upper, source),
        }
        upper
    }

    /// Lets a node without a cache hold its part of `source`, as far as that has it.
    fn give_cache(&mut self, store: &mut KvStore, id: NodeId, source: &SequenceCache) {
        let node = self.node(id);
        if node.cache.is_none() && node.parent.is_some() {
            let base = self.held_above(id).or_else(|| {
                let mut children = node.children.values();
                children.next().and_then(|&child| self.node(child).cache.as_ref())
            });
            if let Some(cache) = source.exact_prefix(store, node.tokens, base) {
                self.hold(store, id, cache);
            }
        }
    }

    /// The cache of the nearest node above that has one.
    fn held_above(&self, id: NodeId) -> Option<&SequenceCache> {
        let mut above = self.node(id).parent;
        while let Some(id) = above {
            let node = self.node(id);
            if node.cache.is_some() {
                return node.cache.as_ref();
            }
            above = node.parent;
        }
        None
    }

    fn hold(&mut self, store: &KvStore, id: NodeId, cache: SequenceCache) {
        self.table_bytes += cache.table_bytes();
        let node = self.node_mut(id);
        node.table_bytes = cache.table_bytes();
        node.cache = Some(cache);
        // What those right below add is less now.
        let mut changed = vec![id];
        let mut next: Vec<NodeId> = self.node(id).children.values().copied().collect();
        while let Some(id) = next.pop() {
            match &self.node(id).cache {
                Some(_) => changed.push(id),
                None => next.extend(self.node(id).children.values()),
            }
        }
        for id in changed {
            let bytes = self.added_bytes(store, id);
            let before = std::mem::replace(&mut self.node_mut(id).bytes, bytes);
            self.bytes = self.bytes + bytes - before;
        }
    }

    fn added_bytes(&self, store: &KvStore, id: NodeId) -> usize {
        let cache = self.node(id).cache.as_ref();
        cache.map_or(0, |cache| cache.bytes_beside(store, self.held_above(id)))
    }

    /// Lets nodes that nobody uses go until the store has `bytes` less in use, and returns how many less it has. Blocks that a
    /// sequence in use holds as well stay.
    pub fn evict(&mut self, store: &mut KvStore, bytes: usize) -> usize {
        let before = store.used_bytes();
        let freed = |store: &KvStore| before.saturating_sub(store.used_bytes());
        self.evict_while(store, |_, store| freed(store) < bytes);
        freed(store)
    }

    /// Lets nodes that nobody uses go until the tree holds at most `bytes`, tables included.
    pub fn shrink_to(&mut self, store: &mut KvStore, bytes: usize) {
        self.evict_while(store, |tree, _| tree.bytes + tree.table_bytes > bytes);
    }

    fn evict_while(&mut self, store: &mut KvStore, mut more: impl FnMut(&Self, &KvStore) -> bool) {
        if !more(self, store) {
            return;
        }
        let evictable = |node: &Node| node.parent.is_some() && node.children.is_empty() && !node.locked();
        let rank = |tree: &Self, id: NodeId| Reverse((tree.policy.rank(&tree.node(id).facts()), id));
        let ids = (0..self.nodes.len() as u32).map(NodeId);
        let leaves =
            ids.filter(|id| self.nodes[id.0 as usize].as_ref().is_some_and(evictable)).collect::<Vec<_>>();
        let mut leaves: BinaryHeap<_> = leaves.into_iter().map(|id| rank(self, id)).collect();
        while more(self, store)
            && let Some(Reverse((_, id))) = leaves.pop()
        {
            let parent = self.remove_leaf(id);
            store.reclaim();
            if let Some(parent) = parent.filter(|&parent| evictable(self.node(parent))) {
                leaves.push(rank(self, parent));
            }
        }
    }

    /// Removes a leaf, and what only led to it. The node that is left above, if it is no root that went as well.
    fn remove_leaf(&mut self, mut id: NodeId) -> Option<NodeId> {
        loop {
            let node = self.nodes[id.0 as usize].take()?;
            self.free.push(id);
            self.bytes -= node.bytes;
            self.table_bytes -= node.table_bytes;
            let Some(parent) = node.parent else {
                self.roots.retain(|_, root| *root != id);
                return None;
            };
            let above = self.node_mut(parent);
            above.children.remove(&node.edge);
            let leads_nowhere = above.children.is_empty() && above.cache.is_none() && !above.locked();
            if !leads_nowhere {
                return Some(parent);
            }
            id = parent;
        }
    }

    /// Forgets everything, locked or not.
    pub fn clear(&mut self) {
        self.roots.clear();
        self.nodes.clear();
        self.free.clear();
        (self.bytes, self.table_bytes) = (0, 0);
    }

    /// All tokens from the root to the end of a node.
    pub fn tokens_of(&self, id: NodeId) -> Vec<u32> {
        let mut tokens = vec![0; self.node(id).tokens];
        let mut next = Some(id);
        while let Some(id) = next {
            let node = self.node(id);
            tokens[node.tokens - node.edge.len()..node.tokens].copy_from_slice(&node.edge);
            next = node.parent;
        }
        tokens
    }

    /// Whom a node belongs to.
    pub(super) fn scope_of(&self, mut id: NodeId) -> Option<&Scope> {
        while let Some(parent) = self.node(id).parent {
            id = parent;
        }
        self.roots.iter().find(|(_, root)| **root == id).map(|(scope, _)| scope)
    }

    /// The node that was used last of those that hold a prefix and are not [settled](Self::settle).
    pub(super) fn next_unsettled(&self) -> Option<NodeId> {
        let nodes = (0..).map(NodeId).zip(&self.nodes);
        let nodes = nodes.filter_map(|(id, node)| Some((id, node.as_ref()?)));
        let unsettled = nodes.filter(|(_, node)| node.cache.is_some() && !node.settled);
        // Of a path all of which was used at once, the end: what leads there is part of it.
        unsettled.max_by_key(|(_, node)| (node.last_used, node.tokens)).map(|(id, _)| id)
    }

    /// Says that a node need not be looked at again by [`Self::next_unsettled`].
    pub(super) fn settle(&mut self, id: NodeId) {
        self.node_mut(id).settled = true;
    }
}
