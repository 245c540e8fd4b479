//! The tree's integrity check: links, tokens, bytes and holders of blocks, each counted anew.

use std::collections::HashSet;

use kvik_kv::{Held, KvStore, SequenceCache};

use super::{NodeId, PrefixTree};

impl PrefixTree {
    /// Checks that every node hangs where its tokens say, that each holds exactly its tokens, that the sum of bytes is right, and that
    /// the store knows of every holder. Returns what the tree holds; while no sequence is in use,
    /// [`held_by_others`](Held::held_by_others) is 0.
    ///
    /// # Errors
    /// A sentence that names the defect: what the tree gives is not to be trusted then.
    pub fn check(&self, store: &mut KvStore) -> Result<Held, String> {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for &root in self.roots.values() {
            if self.node(root).parent.is_some() || self.node(root).cache.is_some() {
                return Err(format!("root {root:?} has a parent or a cache"));
            }
            let mut next = vec![root];
            while let Some(id) = next.pop() {
                if !seen.insert(id) {
                    return Err(format!("two ways lead to {id:?}"));
                }
                bytes += self.check_node(store, id)?;
                next.extend(self.node(id).children.values());
            }
        }
        if seen.len() != self.nodes.iter().flatten().count() {
            return Err("there are nodes that no root leads to".to_owned());
        }
        if bytes != self.bytes {
            return Err(format!("the nodes add {bytes} bytes, and the tree counts {}", self.bytes));
        }
        let tables: usize = self.nodes.iter().flatten().map(|node| node.table_bytes).sum();
        if tables != self.table_bytes {
            return Err(format!(
                "the nodes have tables of {tables} bytes, and the tree counts {}",
                self.table_bytes
            ));
        }
        let caches = self.nodes.iter().flatten().filter_map(|node| node.cache.as_ref());
        let held = store.audit(caches)?;
        if held.bytes > self.bytes {
            return Err(format!("the tree holds {} bytes and counts {}", held.bytes, self.bytes));
        }
        Ok(held)
    }

    /// The bytes that a node adds.
    fn check_node(&self, store: &KvStore, id: NodeId) -> Result<usize, String> {
        let node = self.node(id);
        for (edge, &child) in &node.children {
            let below = self.node(child);
            if below.parent != Some(id) || below.edge != *edge || below.tokens != node.tokens + edge.len() {
                return Err(format!("{child:?} does not hang below {id:?} as it says"));
            }
            if edge.is_empty() || !edge.len().is_multiple_of(self.block_tokens) {
                return Err(format!("{child:?} has {} tokens: no whole blocks", edge.len()));
            }
        }
        let firsts: HashSet<&[u32]> = node.children.keys().map(|edge| &edge[..self.block_tokens]).collect();
        if firsts.len() != node.children.len() {
            return Err(format!("children of {id:?} begin with the same block"));
        }
        let whole = |cache: &SequenceCache| cache.len() == node.tokens && cache.reaches(store, node.tokens);
        if !node.cache.as_ref().is_none_or(whole) {
            return Err(format!("{id:?} does not hold its {} tokens", node.tokens));
        }
        if node.parent.is_some() && node.cache.is_none() && node.children.is_empty() && !node.locked() {
            return Err(format!("{id:?} holds nothing and leads nowhere"));
        }
        let bytes = self.added_bytes(store, id);
        if bytes != node.bytes {
            return Err(format!("{id:?} adds {bytes} bytes and counts {}", node.bytes));
        }
        Ok(bytes)
    }
}
