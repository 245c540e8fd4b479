//! A tile: up to 64 cached tokens of one KV head, and how rows are written into it.

use super::{PlaneKind, Reach};

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

    /// Numbers of a row of a plane, and of the whole plane in bf16.
    pub fn plane(self, plane: PlaneKind) -> (usize, usize) {
        match plane {
            PlaneKind::Keys => (self.key_dim, self.key_len()),
            PlaneKind::Values => (self.value_dim, self.value_len()),
        }
    }

    /// Writes a key `[key_dim]` or value `[value_dim]`, rounded to bf16, into `slot` of a plane.
    pub fn write_row(self, plane: PlaneKind, numbers: &mut [u16], slot: usize, row: &[f32]) {
        match plane {
            PlaneKind::Keys => self.write_key(numbers, slot, row),
            PlaneKind::Values => self.write_value(numbers, slot, row),
        }
    }

    /// Reads the key or value in `slot` of a plane back.
    pub fn read_row(self, plane: PlaneKind, numbers: &[u16], slot: usize, row: &mut [f32]) {
        match plane {
            PlaneKind::Keys => self.read_key(numbers, slot, row),
            PlaneKind::Values => self.read_value(numbers, slot, row),
        }
    }

    /// Copies `slot` of a plane to the same slot of another.
    pub fn copy_row(self, plane: PlaneKind, from: &[u16], to: &mut [u16], slot: usize) {
        self.move_row(plane, (from, slot), (to, slot));
    }

    /// Copies a row of one plane into a slot of another.
    pub fn move_row(self, plane: PlaneKind, from: (&[u16], usize), to: (&mut [u16], usize)) {
        match plane {
            PlaneKind::Keys => {
                let place = |slot: usize, pair: usize| {
                    (slot / GROUP_TOKENS * self.key_pairs() + pair) * 2 * GROUP_TOKENS
                        + slot % GROUP_TOKENS * 2
                };
                for pair in 0..self.key_pairs() {
                    let (source, target) = (place(from.1, pair), place(to.1, pair));
                    to.0[target] = from.0[source];
                    to.0[target + 1] = from.0[source + 1];
                }
            }
            PlaneKind::Values => {
                let start = |slot: usize| slot / 2 * 2 * self.value_stride() + slot % 2;
                let source = from.0[start(from.1)..].iter().step_by(2).take(self.value_dim);
                for (target, &source) in to.0[start(to.1)..].iter_mut().step_by(2).zip(source) {
                    *target = source;
                }
            }
        }
    }

    /// Writes the key `[key_dim]` and value `[value_dim]` of one token, rounded to bf16, into `slot` of a tile.
    pub fn write(self, keys: &mut [u16], values: &mut [u16], slot: usize, key: &[f32], value: &[f32]) {
        self.write_key(keys, slot, key);
        self.write_value(values, slot, value);
    }

    fn write_key(self, keys: &mut [u16], slot: usize, key: &[f32]) {
        let (group, lane) = (slot / GROUP_TOKENS, slot % GROUP_TOKENS);
        let group = &mut keys[group * GROUP_TOKENS * 2 * self.key_pairs()..];
        for (pairs, key) in group.chunks_exact_mut(2 * GROUP_TOKENS).zip(key.chunks(2)) {
            pairs[2 * lane] = to_bf16(key[0]);
            pairs[2 * lane + 1] = key.get(1).map_or(0, |&k| to_bf16(k));
        }
    }

    fn write_value(self, values: &mut [u16], slot: usize, value: &[f32]) {
        let pair = &mut values[slot / 2 * 2 * self.value_stride()..];
        for (slots, &value) in pair.chunks_exact_mut(2).zip(value) {
            slots[slot % 2] = to_bf16(value);
        }
    }

    /// Reads the key and value in `slot` of a tile back.
    pub fn read(self, keys: &[u16], values: &[u16], slot: usize, key: &mut [f32], value: &mut [f32]) {
        self.read_key(keys, slot, key);
        self.read_value(values, slot, value);
    }

    fn read_key(self, keys: &[u16], slot: usize, key: &mut [f32]) {
        let (group, lane) = (slot / GROUP_TOKENS, slot % GROUP_TOKENS);
        let group = &keys[group * GROUP_TOKENS * 2 * self.key_pairs()..];
        for (dim, key) in key.iter_mut().enumerate() {
            *key = from_bf16(group[dim / 2 * 2 * GROUP_TOKENS + 2 * lane + dim % 2]);
        }
    }

    fn read_value(self, values: &[u16], slot: usize, value: &mut [f32]) {
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

impl Positions<'_> {
    /// Position of a row.
    pub fn of(self, row: usize) -> u32 {
        match self {
            Self::From(start) => start + row as u32,
            Self::Each(positions) => positions[row],
        }
    }

    /// True if none of the first `len` rows lies at a position in `first..=last`, as far as that is cheap to say.
    pub(super) fn beyond(self, len: usize, first: u32, last: u32) -> bool {
        match self {
            Self::From(start) => start > last || start as usize + len <= first as usize,
            Self::Each(_) => false,
        }
    }
}

/// Factors on the rows of a tile, if these hold directions and not whole keys and values.
#[derive(Clone, Copy, Debug)]
pub struct RowScales<'a> {
    /// On keys, `[TILE_TOKENS]`; entries past the tile's length must be finite.
    pub keys: &'a [f32],
    /// On values, `[TILE_TOKENS]`; entries past the tile's length must be finite.
    pub values: &'a [f32],
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
    /// Multiplied with each token's score, before the bias, and with the weight of its value.
    pub scales: Option<RowScales<'a>>,
}

impl Tile<'_> {
    pub(super) fn check(&self, shape: TileShape) {
        assert_eq!(self.keys.len(), shape.key_len());
        assert_eq!(self.values.len(), shape.value_len());
        self.check_columns();
    }

    /// Checks what there is one of for each token.
    pub(super) fn check_columns(&self) {
        assert!(self.len <= TILE_TOKENS);
        assert!(self.bias.is_none_or(|bias| bias.len() == TILE_TOKENS));
        if let Some(RowScales { keys, values }) = self.scales {
            assert_eq!([keys.len(), values.len()], [TILE_TOKENS; 2]);
        }
        if let Positions::Each(positions) = self.positions {
            assert_eq!(positions.len(), TILE_TOKENS);
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
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The number that bf16 bits stand for.
#[inline(always)]
pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}
