//! A table of byte strings: number to string and string to number, built once and never changed.
//!
//! A vocabulary has up to a quarter of a million strings, and a model must be ready within milliseconds. So all
//! strings lie behind one another in one buffer, and the index is one array of slots (open addressing, linear
//! probing) that remembers a part of each string's hash, so that a probe rarely touches a string that is not the one
//! sought. The hash is keyed at random: a hostile file cannot make its strings collide.

use std::hash::{BuildHasher, RandomState};

/// Which of two equal strings [`StringTable::get`] finds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Duplicates {
    /// The one that came first, as in a table of merge ranks.
    First,
    /// The one that came last, as in a vocabulary that is filled by assignment.
    Last,
}

/// One place of the index.
#[derive(Clone, Copy)]
struct Slot {
    /// Upper half of the string's hash.
    hash: u32,
    /// The string's number, or [`EMPTY`].
    id: u32,
}

/// The number of no string; a table holds fewer strings than this.
const EMPTY: u32 = u32::MAX;

/// Numbered byte strings that can be found by content.
pub(super) struct StringTable {
    bytes: Vec<u8>,
    /// String `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
    /// A power of two of places, at most 7/8 of them taken.
    slots: Vec<Slot>,
    hasher: RandomState,
}

impl StringTable {
    /// Numbers the strings in the order in which they come. `None` if there are 2³² of them or more.
    pub(super) fn new<'a>(
        strings: impl ExactSizeIterator<Item = &'a [u8]>,
        duplicates: Duplicates,
    ) -> Option<Self> {
        let count = strings.len();
        if count >= EMPTY as usize {
            return None;
        }
        let places = (count + count / 7 + 1).next_power_of_two();
        let mut table = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(count),
            slots: vec![Slot { hash: 0, id: EMPTY }; places],
            hasher: RandomState::new(),
        };
        for string in strings.take(count) {
            let id = table.ends.len() as u32;
            let (hash, place) = table.find(string);
            if table.slots[place].id == EMPTY || duplicates == Duplicates::Last {
                table.slots[place] = Slot { hash, id };
            }
            table.bytes.extend_from_slice(string);
            table.ends.push(table.bytes.len());
        }
        Some(table)
    }

    /// How many strings there are, duplicates included.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// String number `id`; empty if there is none.
    pub(super) fn string(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    /// The number of `string`.
    pub(super) fn get(&self, string: &[u8]) -> Option<u32> {
        let (_, place) = self.find(string);
        Some(self.slots[place].id).filter(|&id| id != EMPTY)
    }

    /// The hash of `string` and the place where it is, or where it would be put.
    fn find(&self, string: &[u8]) -> (u32, usize) {
        let full = self.hasher.hash_one(string);
        let hash = (full >> 32) as u32;
        let mask = self.slots.len() - 1;
        let mut place = full as usize & mask;
        loop {
            let slot = self.slots[place];
            if slot.id == EMPTY || (slot.hash == hash && self.string(slot.id) == string) {
                return (hash, place);
            }
            place = (place + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(strings in prop::collection::vec(prop::collection::vec(0u8..4, 0..4), 0..200)) {
            let (mut first, mut last) = (HashMap::new(), HashMap::new());
            for (id, string) in strings.iter().enumerate() {
                first.entry(string.clone()).or_insert(id as u32);
                last.insert(string.clone(), id as u32);
            }
            for (duplicates, expected) in [(Duplicates::First, first), (Duplicates::Last, last)] {
                let table = StringTable::new(strings.iter().map(Vec::as_slice), duplicates).unwrap();
                prop_assert_eq!(table.len(), strings.len());
                for (id, string) in strings.iter().enumerate() {
                    prop_assert_eq!(table.string(id as u32), &string[..]);
                    prop_assert_eq!(table.get(string), expected.get(string).copied());
                }
                prop_assert_eq!(table.get(b"absent"), None);
            }
        }
    }
}
