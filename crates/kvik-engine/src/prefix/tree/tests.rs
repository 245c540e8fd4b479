//! The tree against a list of everything that was inserted, on caches whose rows tell which tokens they are of.

use std::{sync::Arc, time::Instant};

use kvik_kernels::{Phase, ThreadPool, attention::TILE_TOKENS};
use kvik_kv::{KvShape, KvStore, LayerShape, Pipeline, SequenceCache};
use proptest::prelude::*;

use super::{PrefixLock, PrefixNodeStatus, PrefixTree, PrefixTreeStatus};
use crate::prefix::{LeastRecentlyUsed, Scope};

const BLOCK: usize = 2 * TILE_TOKENS;
const CAPACITY: usize = 10 * BLOCK;
const DIM: usize = 16;

/// A layer that sees everything, and one with a window if it is asked for.
fn store(window: Option<usize>) -> KvStore {
    let layer = |window| LayerShape { kv_heads: 2, key_dim: DIM, value_dim: DIM, window };
    let mut layers = vec![layer(None)];
    layers.extend(window.map(|window| layer(Some(window))));
    KvStore::new(KvShape::unrotated(layers), 64, CAPACITY, CAPACITY).unwrap()
}

fn pool() -> ThreadPool {
    ThreadPool::new(1)
}

/// Reads tokens: the rows of each depend on it and on all before.
fn read(store: &mut KvStore, cache: &mut SequenceCache, seen: &mut Vec<u32>, tokens: &[u32]) {
    let pool = pool();
    for tokens in tokens.chunks(100) {
        cache.reserve(store, tokens.len()).unwrap();
        let mut numbers = Vec::new();
        for &token in tokens {
            seen.push(token);
            let past =
                seen.iter().fold(7u64, |hash, &token| (hash ^ u64::from(token)).wrapping_mul(0x5851_f42d));
            numbers.extend((0..2 * DIM as u64).map(|i| ((past >> 8).wrapping_mul(i + 1) % 251) as f32));
        }
        for layer in 0..store.shape().layers.len() {
            let values: Vec<f32> = numbers.iter().map(|number| number + 1.0 + layer as f32).collect();
            cache.append(&pool, store, layer, &numbers, &values);
        }
        cache.commit(&pool, store, tokens.len(), Phase::Prefill).unwrap();
    }
}

fn sequence(store: &mut KvStore, tokens: &[u32]) -> SequenceCache {
    let mut cache = store.sequence();
    read(store, &mut cache, &mut Vec::new(), tokens);
    cache
}

fn image(store: &KvStore, cache: &SequenceCache) -> Vec<u8> {
    let mut image = Vec::new();
    cache.export_bare(store, &mut image).unwrap();
    image
}

fn tree() -> PrefixTree {
    PrefixTree::new(BLOCK, Box::new(LeastRecentlyUsed))
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// All prefixes that nodes end.
fn all(tree: &PrefixTree) -> Vec<(Scope, Vec<u32>)> {
    let ids = (0..tree.nodes.len() as u32).map(super::NodeId);
    let held = ids.filter(|id| tree.nodes[id.0 as usize].as_ref().is_some_and(|node| node.cache.is_some()));
    held.map(|id| (tree.scope_of(id).unwrap().clone(), tree.tokens_of(id))).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, Vec<u32>),
    /// Finds, begins with what was found, and goes on; keeps the sequence if asked to.
    Begin(usize, Vec<u32>, bool),
    /// Lets a sequence go that was kept.
    End(prop::sample::Index),
    Evict(usize),
    Shrink(usize),
}

/// A prompt of few kinds of blocks, of which one token may be another, so that prompts part anywhere.
fn prompt() -> impl Strategy<Value = Vec<u32>> {
    let blocks = prop::collection::vec(0..3u32, 0..7);
    (blocks, 0..BLOCK, prop::option::of((any::<prop::sample::Index>(), 10..13u32))).prop_map(
        |(blocks, tail, change)| {
            let mut tokens: Vec<u32> = blocks.iter().flat_map(|&block| [block; BLOCK]).collect();
            tokens.extend(vec![1; tail]);
            if let Some((at, token)) = change
                && !tokens.is_empty()
            {
                let at = at.index(tokens.len());
                tokens[at] = token;
            }
            tokens
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2usize, prompt()).prop_map(|(scope, prompt)| Step::Insert(scope, prompt)),
        4 => (0..2usize, prompt(), any::<bool>()).prop_map(|(scope, prompt, stays)| Step::Begin(scope, prompt, stays)),
        1 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => (0..200_000usize).prop_map(Step::Evict),
        1 => (0..200_000usize).prop_map(Step::Shrink),
    ]
}

/// What a request in progress holds.
struct Running {
    _cache: SequenceCache,
    _lock: Option<PrefixLock>,
    scope: Scope,
    found: Vec<u32>,
}

fn play(window: Option<usize>, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let start = Instant::now();
    let scopes = [Scope::Nameless, Scope::Owner(Arc::from("somebody"))];
    let (mut store, mut tree) = (store(window), tree());
    let mut known: Vec<(Scope, Vec<u32>)> = Vec::new();
    let mut running: Vec<Running> = Vec::new();
    for step in steps {
        match step {
            Step::Insert(scope, prompt) => {
                let cache = sequence(&mut store, &prompt);
                let whole = prompt.len() / BLOCK * BLOCK;
                let inserted = tree.insert(&mut store, &scopes[scope], &prompt, &cache);
                if window.is_none() {
                    prop_assert_eq!(inserted.is_some(), whole > 0);
                }
                if let Some(inserted) = inserted {
                    let end = tree.tokens_of(inserted.node);
                    prop_assert!(prompt.starts_with(&end) && (window.is_some() || end.len() == whole));
                    known.push((scopes[scope].clone(), end));
                }
            }
            Step::Begin(scope, prompt, stays) => {
                let limit = prompt.len().saturating_sub(1);
                let found = tree.find(&store, &scopes[scope], &prompt, limit);
                let longest = known.iter().filter(|(owner, _)| *owner == scopes[scope]);
                let longest = longest.map(|(_, tokens)| common(tokens, &prompt[..limit])).max().unwrap_or(0);
                let tokens = found.map_or(0, |found| found.tokens);
                match window {
                    None => prop_assert_eq!(tokens, longest),
                    // In the middle of a node only a part of the rows may be there.
                    Some(_) => {
                        let ends = known.iter().filter(|(owner, end)| {
                            *owner == scopes[scope] && prompt[..limit].starts_with(end)
                        });
                        let whole = ends.map(|(_, end)| end.len()).max().unwrap_or(0);
                        prop_assert!((whole..=longest).contains(&tokens), "{whole} {tokens} {longest}");
                    }
                }
                let mut cache = store.sequence();
                let mut lock = None;
                if let Some(found) = found {
                    prop_assert!(cache.start_from(&mut store, tree.cache(found.node).unwrap(), tokens));
                    lock = Some(tree.lock(found.node));
                }
                // On to the end of a tile, so that no block has rows of anybody else.
                let mut rest = prompt[tokens..].to_vec();
                rest.resize(prompt.len().next_multiple_of(TILE_TOKENS) - tokens, 5);
                let mut seen = prompt[..tokens].to_vec();
                read(&mut store, &mut cache, &mut seen, &rest);
                let expected = sequence(&mut store, &seen);
                prop_assert!(image(&store, &cache) == image(&store, &expected), "other rows");
                if stays {
                    let (scope, found) = (scopes[scope].clone(), prompt[..tokens].to_vec());
                    running.push(Running { _cache: cache, _lock: lock, scope, found });
                }
            }
            Step::End(which) => {
                if !running.is_empty() {
                    running.swap_remove(which.index(running.len()));
                }
            }
            Step::Evict(bytes) => {
                let before = store.used_bytes();
                let freed = tree.evict(&mut store, bytes);
                prop_assert_eq!(before - store.used_bytes(), freed);
                let unlocked_leaves = tree
                    .nodes
                    .iter()
                    .flatten()
                    .filter(|node| node.parent.is_some() && node.children.is_empty() && !node.locked());
                prop_assert!(freed >= bytes || unlocked_leaves.count() == 0);
            }
            Step::Shrink(bytes) => {
                tree.shrink_to(&mut store, bytes);
                prop_assert!(tree.bytes() <= bytes || !running.is_empty());
            }
        }
        let left = all(&tree);
        // Nothing comes from nowhere, and what is in use stays.
        for (scope, tokens) in &left {
            prop_assert!(known.iter().any(|(owner, end)| owner == scope && end.starts_with(tokens)));
        }
        for Running { scope, found, .. } in running.iter().filter(|running| !running.found.is_empty()) {
            prop_assert!(left.iter().any(|(owner, end)| owner == scope && end.starts_with(found)));
        }
        known = left;
        shown_is_there(&tree, start)?;
        let held = tree.check(&mut store).map_err(TestCaseError::fail)?;
        if window.is_none() {
            prop_assert_eq!(held.bytes, tree.bytes());
        }
        if running.is_empty() {
            prop_assert_eq!(held.held_by_others, 0);
        }
    }
    running.clear();
    tree.shrink_to(&mut store, 0);
    store.reclaim();
    prop_assert_eq!((tree.bytes(), tree.table_bytes(), tree.nodes(), tree.roots.len()), (0, 0, 0, 0));
    prop_assert_eq!((store.used_bytes(), store.used_blocks()), (0, 0));
    tree.check(&mut store).map_err(TestCaseError::fail)?;
    Ok(())
}

/// Of a tree so small, all nodes are shown: each behind its parent, and used no later than it.
fn shown_is_there(tree: &PrefixTree, start: Instant) -> Result<(), TestCaseError> {
    let shown = tree.status(start);
    prop_assert_eq!(shown.len(), tree.roots.len());
    let nodes: usize = shown.iter().map(|tree| tree.nodes.len()).sum();
    prop_assert_eq!(nodes, tree.nodes.iter().flatten().filter(|node| node.parent.is_some()).count());
    let mut bytes = 0;
    for PrefixTreeStatus { nodes, children, .. } in &shown {
        let mut path: Vec<&PrefixNodeStatus> = Vec::new();
        for node in nodes {
            prop_assert!(node.depth <= path.len(), "{nodes:?}");
            path.truncate(node.depth);
            let above = path.last().map_or(0, |parent| parent.prefix_tokens);
            prop_assert_eq!(node.prefix_tokens, above + node.tokens);
            prop_assert!(path.last().is_none_or(|parent| parent.last_used_seconds >= node.last_used_seconds));
            path.push(node);
            bytes += node.bytes;
        }
        let below: usize = nodes.iter().map(|node| node.children).sum();
        prop_assert_eq!(children + below, nodes.len());
    }
    prop_assert_eq!(bytes, tree.bytes());
    Ok(())
}

proptest! {
    #[test]
    fn the_longest_prefix_is_what_a_list_of_all_says(steps in prop::collection::vec(step(), 1..24)) {
        play(None, steps)?;
    }

    #[test]
    fn windows_give_what_they_still_have(steps in prop::collection::vec(step(), 1..24), window in 1..300usize) {
        play(Some(window), steps)?;
    }
}

#[test]
fn what_two_prompts_share_lies_in_memory_once() {
    let (mut store, mut tree) = (store(None), tree());
    let shared = vec![1; 3 * BLOCK];
    let prompts = [2, 3, 4].map(|token| [&shared[..], &vec![token; BLOCK + 10]].concat());
    let mut one = 0;
    for prompt in &prompts {
        let cache = sequence(&mut store, prompt);
        let inserted = tree.insert(&mut store, &Scope::Everyone, prompt, &cache).unwrap();
        drop(cache);
        store.reclaim();
        one = if one == 0 { store.used_bytes() / 4 } else { one };
        let branch = inserted.branch.map(|branch| tree.tokens_of(branch));
        assert_eq!(branch, (*prompt == prompts[1]).then(|| shared.clone()));
    }
    assert_eq!((tree.bytes(), store.used_bytes(), tree.tokens()), (6 * one, 6 * one, 6 * BLOCK));
    assert_eq!(tree.nodes(), 4);
}

#[test]
fn what_was_used_least_recently_goes_first_and_what_is_locked_stays() {
    let (mut store, mut tree) = (store(None), tree());
    let prompts = [1, 2, 3, 4].map(|token| vec![token; BLOCK]);
    for prompt in &prompts {
        let cache = sequence(&mut store, prompt);
        tree.insert(&mut store, &Scope::Everyone, prompt, &cache).unwrap();
    }
    let find = |store: &KvStore, tree: &PrefixTree, which: usize| {
        tree.find(store, &Scope::Everyone, &prompts[which], BLOCK).map(|found| found.node)
    };
    let locked = tree.lock(find(&store, &tree, 1).unwrap());
    drop(tree.lock(find(&store, &tree, 0).unwrap()));
    let left = |store: &KvStore, tree: &PrefixTree| {
        (0..4).filter(|&which| find(store, tree, which).is_some()).collect::<Vec<_>>()
    };
    for expected in [vec![0, 1, 3], vec![0, 1], vec![1]] {
        assert!(tree.evict(&mut store, 1) > 0);
        assert_eq!(left(&store, &tree), expected);
    }
    assert_eq!(tree.evict(&mut store, 1), 0);
    drop(locked);
    assert!(tree.evict(&mut store, 1) > 0);
    assert_eq!(left(&store, &tree), [0usize; 0]);
}

#[test]
fn of_many_nodes_those_that_were_used_last_are_shown() {
    let (mut store, mut tree) = (store(None), tree());
    let prompts: Vec<Vec<u32>> =
        (0..40).map(|token| [vec![99; BLOCK], vec![token; BLOCK]].concat()).collect();
    for prompt in &prompts {
        let cache = sequence(&mut store, prompt);
        tree.insert(&mut store, &Scope::Everyone, prompt, &cache).unwrap();
    }
    let first = tree.find(&store, &Scope::Everyone, &prompts[0], 2 * BLOCK).unwrap();
    let lock = tree.lock(first.node);
    let [shown] = &tree.status(Instant::now())[..] else { panic!("one tree") };
    assert!(shown.shared_by_all && shown.owner.is_none());
    assert_eq!((shown.children, shown.nodes[0].children, shown.nodes.len()), (1, 40, 32));
    assert_eq!((shown.nodes[0].depth, shown.nodes[0].tokens), (0, BLOCK));
    // The one that was used again is before all others, and the only one with a hit.
    assert_eq!((shown.nodes[1].hits, shown.nodes[1].locks), (1, 1));
    assert!(shown.nodes[2..].iter().all(|node| (node.depth, node.hits, node.locks) == (1, 0, 0)));
    drop(lock);
}

#[test]
fn what_a_method_has_rewritten_is_not_taken() {
    let (mut store, mut tree) = (store(None), tree());
    let tokens = vec![1; 2 * BLOCK];
    for (kv, exact_before) in [("streaming(budget=100)", true), ("kivi", true), ("h2o(budget=100)", false)] {
        let mut cache = store.sequence_with(&Pipeline::parse(kv).unwrap()).unwrap();
        read(&mut store, &mut cache, &mut Vec::new(), &tokens);
        assert_eq!(cache.is_exact(), exact_before, "{kv}");
        let mut insert = |store: &mut KvStore, cache: &SequenceCache| {
            let inserted = tree.insert(store, &Scope::Everyone, &tokens, cache).is_some();
            tree.shrink_to(store, 0);
            inserted
        };
        assert_eq!(insert(&mut store, &cache), exact_before, "{kv}");
        if exact_before {
            cache.end_of_prompt(&pool(), &mut store).unwrap();
            assert!(!cache.is_exact() && !insert(&mut store, &cache), "{kv}");
        }
    }
}
