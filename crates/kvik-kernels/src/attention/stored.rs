//! A tile as the cache stores it, and how it becomes the bf16 [`Tile`] that kernels fold.
//!
//! A tile has two planes, keys and values. Each is either bf16 rows in the kernels' layout, which are folded where they lie,
//! or a block in some [`Codec`]'s encoding, which is decoded into a [`TileBuffer`] first: a few KiB that stay in the
//! first-level cache, so that what comes from memory is the encoded block alone. For a decoded token the AVX-512 kernels multiply
//! with affine codes where they lie instead, of planes that are full of them and need no turn ([`CodedTile`]). A plane may be
//! split: its first rows encoded, the rest still bf16. Keys may be stored before rotation, and turn on the way. Magnitudes that
//! rows are stored without are left to the kernels: turning a key does not change its length.

use std::{borrow::Cow, ops::Range};

use super::{
    Affine, Tile, TileShape,
    rotary::{Rotary, Turns},
    tile::{Positions, RowScales},
};
#[cfg(target_arch = "x86_64")]
use super::{TILE_TOKENS, encoding::Codes};

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

    /// What sort of encoding it is, for sums of memory: one of a few names, without what was fitted to some rows.
    fn kind(&self) -> Cow<'static, str>;

    /// Bytes of a block that holds one plane of rows of `dim` numbers.
    fn block_bytes(&self, plane: PlaneKind, dim: usize) -> usize;

    /// Rows that are encoded together: [`Codec::encode`] takes whole multiples only, from a multiple on.
    fn group_rows(&self, plane: PlaneKind) -> usize;

    /// Encodes `rows` (`[n, dim]`) as rows `first..first + n` of `block`; what the block holds before `first` stays.
    fn encode(&self, plane: PlaneKind, dim: usize, first: usize, rows: &[f32], block: &mut [u8]);

    /// Decodes rows `0..rows` of `block` into `out`, in the kernels' layout ([`TileShape`]); other rows of `out` may be
    /// overwritten with any finite numbers.
    fn decode(&self, plane: PlaneKind, dim: usize, rows: usize, block: &[u8], out: &mut [u16]);

    /// This codec, if it makes affine codes: kernels can multiply with those where they lie.
    fn affine(&self) -> Option<Affine> {
        None
    }

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

/// A tile of which some planes stay in codes.
#[cfg(target_arch = "x86_64")]
pub(super) struct CodedTile<'a> {
    /// What is not in codes. The keys or values that are, it does not have.
    pub(super) tile: Tile<'a>,
    pub(super) keys: Option<Codes<'a>>,
    pub(super) values: Option<Codes<'a>>,
}

/// Space for one decoded tile.
#[derive(Default)]
pub struct TileBuffer {
    keys: PlaneBuffer,
    values: PlaneBuffer,
}

/// Space for one plane. It begins with a cache line, or every vector that is stored and loaded again would lie across two.
#[derive(Default)]
struct PlaneBuffer(Vec<Line>);

/// Numbers of a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

impl PlaneBuffer {
    /// The first `len` numbers.
    fn numbers(&mut self, len: usize) -> &mut [u16] {
        self.0.resize(len.div_ceil(32).max(self.0.len()), Line([0; 32]));
        // SAFETY: lines are numbers without padding, and there are at least `len` numbers.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}

impl<'a> From<Tile<'a>> for StoredTile<'a> {
    fn from(tile: Tile<'a>) -> Self {
        let Tile { keys, values, len, positions, bias, scales } = tile;
        let (keys, values) = (StoredPlane::Rows(keys), StoredPlane::Rows(values));
        Self { keys, values, len, positions, bias, scales, rotation: None, shifts: None }
    }
}

impl<'a> StoredTile<'a> {
    /// The tile in bf16: borrowed where it is stored so, decoded into `buffer` otherwise.
    pub fn decode(&self, shape: TileShape, buffer: &'a mut TileBuffer) -> Tile<'a> {
        let Self { len, positions, bias, scales, .. } = *self;
        let TileBuffer { keys, values } = buffer;
        let (keys, values) = (self.decode_keys(shape, keys), self.decode_values(shape, values));
        Tile { keys, values, len, positions, bias, scales }
    }

    /// The same, but planes that kernels can multiply with in their codes stay as they are.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn coded(&self, shape: TileShape, buffer: &'a mut TileBuffer) -> CodedTile<'a> {
        let Self { len, positions, bias, scales, .. } = *self;
        let turned = self.rotation.is_some() || self.shifts().is_some();
        let coded_keys = if turned { None } else { self.keys.codes(PlaneKind::Keys, shape, len) };
        let coded_values = self.values.codes(PlaneKind::Values, shape, len);
        let keys = if coded_keys.is_some() { &[] } else { self.decode_keys(shape, &mut buffer.keys) };
        let values = if coded_values.is_some() { &[] } else { self.decode_values(shape, &mut buffer.values) };
        let tile = Tile { keys, values, len, positions, bias, scales };
        CodedTile { tile, keys: coded_keys, values: coded_values }
    }

    /// By how many positions keys are seen further along, if any is.
    fn shifts(&self) -> Option<(&'a Turns, &'a [u32])> {
        self.shifts.filter(|(_, by)| by[..self.len].iter().any(|&by| by > 0))
    }

    fn decode_keys(&self, shape: TileShape, buffer: &'a mut PlaneBuffer) -> &'a [u16] {
        let shifts = self.shifts();
        if let (StoredPlane::Rows(keys), None, None) = (self.keys, self.rotation, shifts) {
            return keys;
        }
        let keys = buffer.numbers(shape.key_len());
        self.keys.decode(PlaneKind::Keys, shape, self.len, keys);
        if let Some(rotary) = self.rotation {
            rotary.rotate_tile(shape, self.len, self.positions, keys);
        }
        if let Some((turns, by)) = shifts {
            turns.turn_tile(shape, &by[..self.len], keys);
        }
        keys
    }

    fn decode_values(&self, shape: TileShape, buffer: &'a mut PlaneBuffer) -> &'a [u16] {
        if let StoredPlane::Rows(values) = self.values {
            return values;
        }
        let values = buffer.numbers(shape.value_len());
        self.values.decode(PlaneKind::Values, shape, self.len, values);
        values
    }

    /// What to bring into the cache while the kernels go over the tile's keys, and what while they go over its values, if `next`
    /// is the tile after it.
    pub(super) fn ahead(&self, next: Option<&Self>) -> [&'a [u8]; 2] {
        let [next_keys, next_values] =
            next.map_or([&[][..]; 2], |next| [next.keys, next.values].map(StoredPlane::bytes));
        match self.values {
            StoredPlane::Rows(_) => [self.values.bytes(), next_keys],
            // They are decoded by then.
            StoredPlane::Encoded { .. } => [next_keys, next_values],
        }
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

impl<'a> StoredPlane<'a> {
    /// What is read of it, rows behind encoded ones left out.
    fn bytes(self) -> &'a [u8] {
        match self {
            // SAFETY: numbers of 16 bits are bytes without padding, and bytes need no alignment.
            Self::Rows(rows) => unsafe {
                std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows))
            },
            Self::Encoded { block, .. } => block,
        }
    }

    /// The codes of a plane that is full of them.
    #[cfg(target_arch = "x86_64")]
    fn codes(self, plane: PlaneKind, shape: TileShape, len: usize) -> Option<Codes<'a>> {
        match self {
            Self::Encoded { codec, block, rows, .. } if rows.min(len) == TILE_TOKENS => {
                codec.affine()?.codes(plane, shape.plane(plane).0, block)
            }
            _ => None,
        }
    }

    /// Decodes the first `len` rows into `numbers`, in the kernels' layout; rows after them are finite.
    fn decode(self, plane: PlaneKind, shape: TileShape, len: usize, numbers: &mut [u16]) {
        let dim = shape.plane(plane).0;
        match self {
            Self::Rows(rows) => numbers.copy_from_slice(rows),
            Self::Encoded { codec, block, rows, rest } => {
                codec.decode(plane, dim, rows.min(len), block, numbers);
                if let Some(rest) = rest {
                    for row in rows..len {
                        shape.copy_row(plane, rest, numbers, row);
                    }
                }
            }
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
