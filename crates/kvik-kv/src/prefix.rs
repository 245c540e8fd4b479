//! Prefixes: the first rows of a sequence, held by themselves, so that other sequences can begin with them.
//!
//! As long as nothing was chosen, merged or encoded, what a model has cached of some tokens depends on those tokens alone, and
//! whoever begins with the same ones may have the same blocks. Such a sequence is *exact* ([`SequenceCache::is_exact`]);
//! [`SequenceCache::exact_prefix`] holds its beginning, and [`SequenceCache::start_from`] lets an empty sequence begin with it.
//! Blocks gain a holder and nothing is copied; the one that is filled in part is copied when either side writes to it.
//!
//! Sequences whose methods wait for the end of the prompt ([`Method::waits_for_end`](crate::Method::waits_for_end)) are exact
//! until then. A sliding-window layer holds its window only, so its beginning can be had up to where the window has left rows
//! behind.

use std::collections::HashMap;

use crate::{
    Segment, SequenceCache,
    segment::Plane,
    store::{Block, KvStore},
};

/// What some sequences hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Blocks, each counted once.
    pub blocks: usize,
    /// Their bytes, each block counted once.
    pub bytes: usize,
    /// How often the same blocks are held by other sequences.
    pub held_by_others: usize,
}

impl SequenceCache {
    /// True if all rows are those that any sequence with the same tokens would have: no method has rewritten anything.
    pub fn is_exact(&self) -> bool {
        self.rewritten_tokens == 0
            && self.turns == 0
            && self.methods.iter().all(|method| method.waits_for_end())
            && self
                .layers
                .iter()
                .flat_map(|layer| &layer.heads)
                .all(|head| head.segments.len() == 1 && head.copies.is_empty() && head.segments[0].is_plain())
    }

    /// True if the sequence has its first `len` tokens as they are, and all rows that a query behind them sees.
    pub fn reaches(&self, store: &KvStore, len: usize) -> bool {
        let whole = |(index, layer): (usize, &crate::sequence::LayerCache)| {
            let window = store.layer(index).window;
            layer.heads.iter().all(|head| head.segments[0].reaches(len, window))
        };
        len <= self.len && self.is_exact() && self.layers.iter().enumerate().all(whole)
    }

    /// The first `len` tokens as a sequence of the full pipeline; `None` if it does not [reach](Self::reaches) so far. Where `base`,
    /// a sequence with the same first tokens, has rows of them, its blocks are held and not the own ones.
    pub fn exact_prefix(&self, store: &mut KvStore, len: usize, base: Option<&Self>) -> Option<Self> {
        if len == 0 || !self.reaches(store, len) {
            return None;
        }
        let mut prefix = store.sequence();
        prefix.take_prefix(store, self, len, len, base);
        Some(prefix)
    }

    /// How many tokens of a prompt the sequence has to read itself, so that [`Self::start_from`] changes nothing: at least one, whose
    /// logits are wanted. `None` if its methods see a prompt while it is read.
    pub fn own_tokens(&self) -> Option<usize> {
        let evidence = self.evidence();
        let waits = self.methods.iter().all(|method| method.waits_for_end());
        (waits && !evidence.accumulated && !evidence.step).then_some(evidence.window.max(1))
    }

    /// Lets the sequence, which is empty, begin with the first `len` tokens of `prefix`, as if it had read them. False if `prefix`
    /// does not [reach](Self::reaches) so far, or a method would have to see them read.
    ///
    /// # Panics
    /// If the sequence is not empty.
    pub fn start_from(&mut self, store: &mut KvStore, prefix: &Self, len: usize) -> bool {
        assert!(self.is_empty(), "a sequence begins with a prefix or not at all");
        if self.own_tokens().is_none() || !prefix.reaches(store, len) || len > self.capacity_tokens() {
            return false;
        }
        self.take_prefix(store, prefix, len, self.capacity_tokens(), None);
        true
    }

    fn take_prefix(
        &mut self,
        store: &mut KvStore,
        source: &Self,
        len: usize,
        room: usize,
        base: Option<&Self>,
    ) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (kv_head, head) in layer.heads.iter_mut().enumerate() {
                let base = base.map(|base| first_segment(base, index, kv_head));
                let segment = first_segment(source, index, kv_head).prefix(store, len, room, base);
                head.segments[0] = segment;
            }
        }
        self.len = len;
        self.prompt_tokens = if self.methods.is_empty() { 0 } else { len };
    }

    /// Bytes of the tables that say where its blocks are.
    pub fn table_bytes(&self) -> usize {
        let heads: usize = self.layers.iter().map(|layer| size_of_val(&layer.heads[..])).sum();
        heads + self.segments().map(|segment| size_of::<Segment>() + segment.table_bytes()).sum::<usize>()
    }

    /// Bytes of the blocks that `base` does not hold at the same place, each counted whole, however many hold it.
    pub fn bytes_beside(&self, store: &KvStore, base: Option<&Self>) -> usize {
        let heads = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer.heads.iter().enumerate().map(move |(kv_head, head)| (index, kv_head, head))
        });
        let segments = heads.flat_map(|(layer, kv_head, head)| {
            let base = base.map(|base| first_segment(base, layer, kv_head));
            head.segments.iter().flat_map(move |segment| segment.blocks_beside(base))
        });
        segments.map(|block| store.block_bytes(block)).sum()
    }
}

impl KvStore {
    /// Counts what `sequences` hold, and holds the counts against the store's own.
    ///
    /// # Errors
    /// A sentence, if one holds a block that the store does not have in use, or has fewer holders of, or if the store's bytes by
    /// encoding are not those of its blocks: a defect.
    pub fn audit<'a>(
        &mut self,
        sequences: impl IntoIterator<Item = &'a SequenceCache>,
    ) -> Result<Held, String> {
        self.take_back();
        self.check_tally()?;
        let mut counts: HashMap<Block, usize> = HashMap::new();
        for segment in sequences.into_iter().flat_map(SequenceCache::segments) {
            for block in segment.all_planes().flatten().flat_map(Plane::blocks) {
                *counts.entry(block).or_default() += 1;
            }
        }
        let mut held = Held { blocks: counts.len(), ..Held::default() };
        for (block, count) in counts {
            let holders = self.holders_if_used(block);
            let Some(others) = holders.checked_sub(count) else {
                return Err(format!(
                    "block {} is held {count} times and the store knows of {holders}",
                    block.index()
                ));
            };
            held.held_by_others += others;
            held.bytes += self.block_bytes(block);
        }
        Ok(held)
    }
}

fn first_segment(sequence: &SequenceCache, layer: usize, kv_head: usize) -> &Segment {
    &sequence.head_cache(layer, kv_head).segments[0]
}
