//! A tile: up to 64 cached tokens of one KV head, and how rows are written into it.

use super::Reach;

/// Tokens in a full tile.
pub const TILE_TOKENS: usize = 64;

/// Tokens that one 64-byte key load covers.
pub(super) const GROUP_TOKENS: usize = 16;

/// Head dimensions of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// Length of a key.
    pub key_dim: usize,
    /// Length of a value.
    pub value_dim: usize,
}

impl TileShape {
    /// Pairs of dims that a stored key has (an odd last dim is padded with zero).
    pub fn key_pairs(self) -> usize {
        self.key_dim.div_ceil(2)
    }

    /// Floats between two rows of accumulators: `value_dim` rounded up to whole vectors.
    pub fn value_stride(self) -> usize {
        self.value_dim.next_multiple_of(16)
    }

    /// bf16 numbers of a tile's keys.
    pub fn key_len(self) -> usize {
        TILE_TOKENS * 2 * self.key_pairs()
    }

    /// bf16 numbers of a tile's values.
    pub fn value_len(self) -> usize {
        TILE_TOKENS * self.value_stride()
    }

    /// Bytes of a tile.
    pub fn tile_bytes(self) -> usize {
        2 * (self.key_len() + self.value_len())
    }

    /// Writes the key `[key_dim]` and value `[value_dim]` of one token, rounded to bf16, into `slot` of a tile.
    pub fn write(self, keys: &mut [u16], values: &mut [u16], slot: usize, key: &[f32], value: &[f32]) {
        let (group, lane) = (slot / GROUP_TOKENS, slot % GROUP_TOKENS);
        let group = &mut keys[group * GROUP_TOKENS * 2 * self.key_pairs()..];
        for (pairs, key) in group.chunks_exact_mut(2 * GROUP_TOKENS).zip(key.chunks(2)) {
            pairs[2 * lane] = to_bf16(key[0]);
            pairs[2 * lane + 1] = key.get(1).map_or(0, |&k| to_bf16(k));
        }
        let pair = &mut values[slot / 2 * 2 * self.value_stride()..];
        for (slots, &value) in pair.chunks_exact_mut(2).zip(value) {
            slots[slot % 2] = to_bf16(value);
        }
    }

    /// Reads the key and value in `slot` of a tile back.
    pub fn read(self, keys: &[u16], values: &[u16], slot: usize, key: &mut [f32], value: &mut [f32]) {
        let (group, lane) = (slot / GROUP_TOKENS, slot % GROUP_TOKENS);
        let group = &keys[group * GROUP_TOKENS * 2 * self.key_pairs()..];
        for (dim, key) in key.iter_mut().enumerate() {
            *key = from_bf16(group[dim / 2 * 2 * GROUP_TOKENS + 2 * lane + dim % 2]);
        }
        let pair = &values[slot / 2 * 2 * self.value_stride()..];
        for (dim, value) in value.iter_mut().enumerate() {
            *value = from_bf16(pair[2 * dim + slot % 2]);
        }
    }
}

/// Positions of a tile's tokens.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// Consecutive, from this one on.
    From(u32),
    /// One each, `[TILE_TOKENS]`; entries past the tile's length are ignored.
    Each(&'a [u32]),
}

/// Cached tokens of one KV head, in the layout that the module describes.
#[derive(Clone, Copy)]
pub struct Tile<'a> {
    /// bf16 keys, `[TileShape::key_len]`.
    pub keys: &'a [u16],
    /// bf16 values, `[TileShape::value_len]`; entries past `len` must be finite.
    pub values: &'a [u16],
    /// Tokens in the tile.
    pub len: usize,
    /// Position of each token.
    pub positions: Positions<'a>,
    /// Added to each token's score, `[TILE_TOKENS]`: the log of how many tokens a merged row stands for.
    pub bias: Option<&'a [f32]>,
}

impl Tile<'_> {
    pub(super) fn check(&self, shape: TileShape) {
        assert_eq!(self.keys.len(), shape.key_len());
        assert_eq!(self.values.len(), shape.value_len());
        assert!(self.len <= TILE_TOKENS);
        assert!(self.bias.is_none_or(|bias| bias.len() == TILE_TOKENS));
        if let Positions::Each(positions) = self.positions {
            assert_eq!(positions.len(), TILE_TOKENS);
        }
    }

    /// True if no token lies at a position in `first..=last`, as far as that is cheap to say.
    pub(super) fn beyond(&self, first: u32, last: u32) -> bool {
        match self.positions {
            Positions::From(start) => start > last || start as usize + self.len <= first as usize,
            Positions::Each(_) => false,
        }
    }

    /// Smallest and largest position of a token.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn span(&self) -> (u32, u32) {
        match self.positions {
            Positions::From(start) => (start, start + self.len.max(1) as u32 - 1),
            Positions::Each(positions) => positions[..self.len]
                .iter()
                .fold((u32::MAX, 0), |(lowest, highest), &p| (lowest.min(p), highest.max(p))),
        }
    }

    /// One bit per token: set if a query at `position` may see it.
    pub(super) fn visible(&self, reach: Reach, position: u32) -> u64 {
        let (first, last) = reach.range(position);
        match self.positions {
            Positions::From(start) => {
                let below = first.saturating_sub(start).min(self.len as u32);
                let upto = last.saturating_add(1).saturating_sub(start).min(self.len as u32);
                low_bits(upto) & !low_bits(below)
            }
            Positions::Each(positions) => positions[..self.len]
                .iter()
                .enumerate()
                .fold(0, |bits, (i, &p)| bits | u64::from(first <= p && p <= last) << i),
        }
    }
}

fn low_bits(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Rounds to bf16, to nearest with ties to even, as the AVX-512 conversion does for normal numbers.
#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[inline(always)]
pub(super) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
