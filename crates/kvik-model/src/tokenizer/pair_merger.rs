//! Greedy pair merging: the loop that byte-pair encoding and SentencePiece share.
//!
//! A text starts as a row of symbols, one per character. Of all neighbouring pairs that may be joined, the one with
//! the lowest rank is joined first (the leftmost of several), until no pair may be. The two kinds of tokenizer differ
//! only in the rank of a pair. A heap holds the pairs that may be joined and a doubly linked list the symbols, so
//! that n characters take O(n log n) steps.

use std::{cmp::Reverse, collections::BinaryHeap};

/// The end of the list of symbols.
const NONE: usize = usize::MAX;

/// A run of characters that have been joined.
struct Symbol {
    /// Where its text starts, in bytes.
    start: usize,
    /// How long its text is, in bytes; 0 once its left neighbour has absorbed it.
    len: usize,
    previous: usize,
    next: usize,
}

/// Joins the characters of a text into symbols. Keeps its buffers from text to text.
#[derive(Default)]
pub(super) struct PairMerger {
    symbols: Vec<Symbol>,
    /// Pairs that may be joined: (rank, left symbol, bytes of both together), the lowest on top.
    pairs: BinaryHeap<Reverse<(u32, usize, usize)>>,
}

impl PairMerger {
    /// The symbols of `text` in order. `rank(joined, middle)` is the rank of the pair whose joined text is `joined`
    /// and whose right symbol starts at byte `middle` of it, or `None` if the two must not be joined.
    pub(super) fn merge<'t>(
        &mut self,
        text: &'t str,
        mut rank: impl FnMut(&'t str, usize) -> Option<u32>,
    ) -> impl Iterator<Item = &'t str> {
        self.symbols.clear();
        self.pairs.clear();
        for (index, (start, c)) in text.char_indices().enumerate() {
            let previous = index.checked_sub(1).unwrap_or(NONE);
            self.symbols.push(Symbol { start, len: c.len_utf8(), previous, next: index + 1 });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
        for left in 1..self.symbols.len() {
            self.consider(text, left - 1, left, &mut rank);
        }
        while let Some(Reverse((_, left, joined_len))) = self.pairs.pop() {
            let right = self.symbols[left].next;
            // A pair is out of date once either symbol has changed: symbols only ever grow, or vanish.
            if self.symbols[left].len == 0
                || right == NONE
                || self.symbols[left].len + self.symbols[right].len != joined_len
            {
                continue;
            }
            let after = self.symbols[right].next;
            self.symbols[right].len = 0;
            self.symbols[left].len = joined_len;
            self.symbols[left].next = after;
            if after != NONE {
                self.symbols[after].previous = left;
            }
            self.consider(text, self.symbols[left].previous, left, &mut rank);
            self.consider(text, left, after, &mut rank);
        }
        let joined = self.symbols.iter().filter(|symbol| symbol.len > 0);
        joined.map(move |symbol| &text[symbol.start..symbol.start + symbol.len])
    }

    /// Queues a pair of neighbours if they may be joined.
    fn consider<'t>(
        &mut self,
        text: &'t str,
        left: usize,
        right: usize,
        rank: &mut impl FnMut(&'t str, usize) -> Option<u32>,
    ) {
        if left == NONE || right == NONE {
            return;
        }
        let (start, middle) = (self.symbols[left].start, self.symbols[right].start);
        let end = middle + self.symbols[right].len;
        if let Some(rank) = rank(&text[start..end], middle - start) {
            self.pairs.push(Reverse((rank, left, end - start)));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition taken literally: look at all pairs, join the best, start over.
    fn by_brute_force(text: &str, rank: impl Fn(&str, &str) -> Option<u32>) -> Vec<String> {
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        let best = |symbols: &[String]| {
            let ranks = symbols.windows(2).enumerate();
            ranks.filter_map(|(i, pair)| Some((rank(&pair[0], &pair[1])?, i))).min()
        };
        while let Some((_, left)) = best(&symbols) {
            let right = symbols.remove(left + 1);
            symbols[left].push_str(&right);
        }
        symbols
    }

    proptest! {
        /// Ranks are arbitrary here, so later merges may outrank earlier ones and ranks may tie.
        #[test]
        fn joins_what_the_definition_joins(text in "[abé]{0,24}", table in prop::collection::vec(0u32..6, 64)) {
            let rank = |left: &str, right: &str| {
                let key = left.bytes().chain([0]).chain(right.bytes()).fold(7, |h: usize, b| h.wrapping_mul(31) + b as usize);
                Some(table[key % table.len()]).filter(|&rank| rank > 1)
            };
            let mut merger = PairMerger::default();
            let merged: Vec<String> = merger.merge(&text, |joined, middle| rank(&joined[..middle], &joined[middle..])).map(String::from).collect();
            prop_assert_eq!(merged, by_brute_force(&text, rank));
        }
    }
}
