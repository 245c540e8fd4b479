//! The key-value pairs of a GGUF file: an index of where each lies.

use std::ops::Range;

use super::{
    GgufError, Place, Problem,
    cursor::Cursor,
    value::{ValueType, decode_checked, read_value},
};
use crate::metadata::Value;

/// Where the keys and values lie in the file. Holds no bytes of it.
#[derive(Debug, Default)]
pub struct Dictionary {
    /// In file order.
    pairs: Vec<Pair>,
    /// Indices of `pairs`, sorted by key.
    by_key: Vec<u32>,
}

#[derive(Debug)]
struct Pair {
    key: Range<usize>,
    ty: ValueType,
    value: Range<usize>,
}

impl Dictionary {
    /// The shortest pair: an empty key, the type and one byte.
    pub(super) const LEAST_PAIR_BYTES: usize = 8 + 4 + 1;

    /// Reads `count` pairs.
    pub(super) fn read<'a>(cursor: &mut Cursor<'a>, file: &'a [u8], count: usize) -> Result<Self, GgufError> {
        let mut pairs = Vec::new();
        for _ in 0..count {
            cursor.enter(Place::Metadata);
            let key = cursor.string()?;
            let key_end = cursor.position();
            cursor.enter(Place::Key(key.to_owned()));
            let ty = ValueType::read(cursor)?;
            let start = cursor.position();
            read_value(cursor, ty)?;
            pairs.push(Pair { key: key_end - key.len()..key_end, ty, value: start..cursor.position() });
        }
        let key_of = |index: u32| text(file, &pairs[index as usize].key);
        let mut by_key: Vec<u32> = (0..pairs.len() as u32).collect();
        by_key.sort_unstable_by_key(|&index| key_of(index));
        if let Some(twins) = by_key.windows(2).find(|twins| key_of(twins[0]) == key_of(twins[1])) {
            return Err(GgufError {
                problem: Problem::DuplicateKey,
                place: Place::Key(key_of(twins[0]).to_owned()),
                offset: pairs[twins[0].max(twins[1]) as usize].key.start,
            });
        }
        Ok(Self { pairs, by_key })
    }

    /// The value of `key` in `file`, the bytes that this index was made of.
    pub fn get<'a>(&self, file: &'a [u8], key: &str) -> Option<Value<'a>> {
        self.find(file, key)?.decode(file)
    }

    /// Where the value of `key` starts in `file`, in bytes; 0 if there is none.
    pub(super) fn offset_of(&self, file: &[u8], key: &str) -> usize {
        self.find(file, key).map_or(0, |pair| pair.value.start)
    }

    fn find(&self, file: &[u8], key: &str) -> Option<&Pair> {
        let compare = |&index: &u32| text(file, &self.pairs[index as usize].key).cmp(key);
        let found = self.by_key.binary_search_by(compare).ok()?;
        Some(&self.pairs[self.by_key[found] as usize])
    }

    /// All pairs in file order. `file` holds the bytes that this index was made of.
    pub fn iter<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.pairs.iter().filter_map(move |pair| Some((text(file, &pair.key), pair.decode(file)?)))
    }
}

impl Pair {
    fn decode<'a>(&self, file: &'a [u8]) -> Option<Value<'a>> {
        decode_checked(file.get(self.value.clone())?, self.ty)
    }
}

/// The text at `range`, which was checked to be UTF-8 when the index was made.
fn text<'a>(file: &'a [u8], range: &Range<usize>) -> &'a str {
    file.get(range.clone()).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
}
