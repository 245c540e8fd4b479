//! A tile as the cache stores it, and how it becomes the bf16 [`Tile`] that kernels fold.
//!
//! A tile has two planes, keys and values. Each is either bf16 rows in the kernels' layout, which are folded where they lie,
//! or a block in some [`Codec`]'s encoding, which is decoded into a [`TileBuffer`] first: a few KiB that stay in the
//! first-level cache, so that what comes from memory is the encoded block alone. A plane may be split: its first rows
//! encoded, the rest still bf16. Rows may carry magnitudes and keys may be stored before rotation; both are applied on the way.

use std::ops::Range;

use super::{
    TILE_TOKENS, Tile, TileShape,
    rotary::{Rotary, Turns},
    tile::{GROUP_TOKENS, Positions, from_bf16, to_bf16},
};

/// Which half of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PlaneKind {
    /// Keys, `[TILE_TOKENS, key_dim]`.
    Keys,
    /// Values, `[TILE_TOKENS, value_dim]`.
    Values,
}

/// An encoding of one plane of a tile.
///
/// Implementations are held to their own [`Codec::encode`] by property tests; `decode` is what attention runs for every tile
/// that a query visits, so it is the one to make fast.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// Name for people and for exported caches, parameters included: equal names decode equally.
    fn name(&self) -> String;

    /// Bytes of a block that holds one plane of rows of `dim` numbers.
    fn block_bytes(&self, plane: PlaneKind, dim: usize) -> usize;

    /// Rows that are encoded together: [`Codec::encode`] takes whole multiples only, from a multiple on.
    fn group_rows(&self, plane: PlaneKind) -> usize;

    /// Encodes `rows` (`[n, dim]`) as rows `first..first + n` of `block`; what the block holds before `first` stays.
    fn encode(&self, plane: PlaneKind, dim: usize, first: usize, rows: &[f32], block: &mut [u8]);

    /// Decodes rows `0..rows` of `block` into `out`, in the kernels' layout ([`TileShape`]); other rows of `out` may be
    /// overwritten with any finite numbers.
    fn decode(&self, plane: PlaneKind, dim: usize, rows: usize, block: &[u8], out: &mut [u16]);

    /// Decodes `rows` of `block` into `out`, `[rows, dim]`: for reading a few rows of a tile. Worth writing where that is cheaper
    /// than decoding the tile.
    fn decode_rows(&self, plane: PlaneKind, dim: usize, rows: Range<usize>, block: &[u8], out: &mut [f32]) {
        let shape = TileShape { key_dim: dim, value_dim: dim };
        let mut tile = vec![0; shape.plane(plane).1];
        self.decode(plane, dim, rows.end, block, &mut tile);
        for (row, out) in rows.zip(out.chunks_exact_mut(dim)) {
            shape.read_row(plane, &tile, row, out);
        }
    }
}

/// One plane of a stored tile.
#[derive(Clone, Copy)]
pub enum StoredPlane<'a> {
    /// bf16 in the kernels' layout.
    Rows(&'a [u16]),
    /// A codec's block.
    Encoded {
        /// What can read it.
        codec: &'a dyn Codec,
        /// `[Codec::block_bytes]`.
        block: &'a [u8],
        /// Rows that are encoded.
        rows: usize,
        /// bf16 in the kernels' layout, for the rows after them.
        rest: Option<&'a [u16]>,
    },
}

/// Factors on the rows of a tile.
#[derive(Clone, Copy)]
pub struct RowScales<'a> {
    /// On keys, `[TILE_TOKENS]`.
    pub keys: &'a [f32],
    /// On values, `[TILE_TOKENS]`.
    pub values: &'a [f32],
}

/// A tile as it is stored.
#[derive(Clone, Copy)]
pub struct StoredTile<'a> {
    /// Keys.
    pub keys: StoredPlane<'a>,
    /// Values.
    pub values: StoredPlane<'a>,
    /// Tokens in the tile.
    pub len: usize,
    /// Position of each token.
    pub positions: Positions<'a>,
    /// Added to each token's score, `[TILE_TOKENS]`.
    pub bias: Option<&'a [f32]>,
    /// Magnitudes of the rows, if they are stored apart.
    pub scales: Option<RowScales<'a>>,
    /// The keys are stored before rotation: what turns them, each by its position.
    pub rotation: Option<&'a Rotary>,
    /// Keys are seen further along than their positions: what turns them, and by how many positions more, `[TILE_TOKENS]`.
    pub shifts: Option<(&'a Turns, &'a [u32])>,
}

/// Space for one decoded tile.
#[derive(Default)]
pub struct TileBuffer {
    keys: Vec<u16>,
    values: Vec<u16>,
}

impl<'a> From<Tile<'a>> for StoredTile<'a> {
    fn from(tile: Tile<'a>) -> Self {
        let Tile { keys, values, len, positions, bias } = tile;
        let (keys, values) = (StoredPlane::Rows(keys), StoredPlane::Rows(values));
        Self { keys, values, len, positions, bias, scales: None, rotation: None, shifts: None }
    }
}

impl<'a> StoredTile<'a> {
    /// The tile in bf16: borrowed where it is stored so, decoded into `buffer` otherwise.
    pub fn decode(&self, shape: TileShape, buffer: &'a mut TileBuffer) -> Tile<'a> {
        let Self { len, positions, bias, scales, rotation, .. } = *self;
        let TileBuffer { keys: key_buffer, values: value_buffer } = buffer;
        let (key_scales, value_scales) = (scales.map(|s| s.keys), scales.map(|s| s.values));
        let shifts = self.shifts.filter(|(_, by)| by[..len].iter().any(|&by| by > 0));
        let keys = match (self.keys, key_scales, rotation, shifts) {
            (StoredPlane::Rows(keys), None, None, None) => keys,
            (plane, ..) => {
                plane.decode(PlaneKind::Keys, shape, len, key_buffer);
                if let Some(scales) = key_scales {
                    scale_keys(shape, scales, key_buffer);
                }
                if let Some(rotary) = rotation {
                    rotary.rotate_tile(shape, len, positions, key_buffer);
                }
                if let Some((turns, by)) = shifts {
                    turns.turn_tile(shape, &by[..len], key_buffer);
                }
                key_buffer
            }
        };
        let values = match (self.values, value_scales) {
            (StoredPlane::Rows(values), None) => values,
            (plane, _) => {
                plane.decode(PlaneKind::Values, shape, len, value_buffer);
                if let Some(scales) = value_scales {
                    scale_values(shape, scales, value_buffer);
                }
                value_buffer
            }
        };
        Tile { keys, values, len, positions, bias }
    }

    /// Keys and values that will be read where they lie, for prefetching.
    pub fn plain(&self) -> (&'a [u16], &'a [u16]) {
        let rows = |plane| match plane {
            StoredPlane::Rows(rows) => rows,
            StoredPlane::Encoded { .. } => &[],
        };
        (rows(self.keys), rows(self.values))
    }

    /// Brings what is encoded into the cache, ahead of [`StoredTile::decode`].
    pub fn fetch(&self) {
        for plane in [self.keys, self.values] {
            if let StoredPlane::Encoded { block, .. } = plane {
                fetch(block);
            }
        }
    }

    /// As [`Tile::beyond`].
    pub(super) fn beyond(&self, first: u32, last: u32) -> bool {
        self.positions.beyond(self.len, first, last)
    }
}

impl StoredPlane<'_> {
    /// Decodes the first `len` rows into `buffer`, in the kernels' layout; rows after them are finite.
    fn decode(self, plane: PlaneKind, shape: TileShape, len: usize, buffer: &mut Vec<u16>) {
        let (dim, plane_len) = shape.plane(plane);
        buffer.resize(plane_len, 0);
        match self {
            Self::Rows(rows) => buffer.copy_from_slice(rows),
            Self::Encoded { codec, block, rows, rest } => {
                codec.decode(plane, dim, rows.min(len), block, buffer);
                if let Some(rest) = rest {
                    for row in rows..len {
                        shape.copy_row(plane, rest, buffer, row);
                    }
                }
            }
        }
    }
}

fn scale_keys(shape: TileShape, scales: &[f32], keys: &mut [u16]) {
    for (group, keys) in keys.chunks_exact_mut(GROUP_TOKENS * 2 * shape.key_pairs()).enumerate() {
        let scales: &[f32; GROUP_TOKENS] =
            scales[group * GROUP_TOKENS..][..GROUP_TOKENS].try_into().expect("a group has 16 tokens");
        for pairs in keys.chunks_exact_mut(2 * GROUP_TOKENS) {
            for (pair, &scale) in pairs.chunks_exact_mut(2).zip(scales) {
                pair[0] = to_bf16(from_bf16(pair[0]) * scale);
                pair[1] = to_bf16(from_bf16(pair[1]) * scale);
            }
        }
    }
}

fn scale_values(shape: TileShape, scales: &[f32], values: &mut [u16]) {
    for (values, scales) in values.chunks_exact_mut(2 * shape.value_stride()).zip(scales.chunks_exact(2)) {
        for pair in values.chunks_exact_mut(2) {
            pair[0] = to_bf16(from_bf16(pair[0]) * scales[0]);
            pair[1] = to_bf16(from_bf16(pair[1]) * scales[1]);
        }
    }
}

/// Brings `bytes` into the first-level cache.
fn fetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing, and the address is inside `bytes`.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

const _: () = assert!(TILE_TOKENS.is_multiple_of(GROUP_TOKENS));
