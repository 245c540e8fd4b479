//! Memory by encoding and place.
//!
//! Every block says which [`Encoding`] its bytes are in, and the store counts a block's bytes when it comes, moves and goes. So the
//! answer to "how much lies where, as what" is there at any time, however many blocks there are;
//! [`KvStore::audit`] counts them one by one and holds the sums against it.

use std::borrow::Cow;

use crate::store::{Block, KvStore};

/// What the bytes of blocks are, and where they lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodingBytes {
    /// The encoding: `bf16`, `bf16-copies` (rows that stand a second time for quick reading), `merged-layers` (bf16 directions that
    /// two layers share), or a codec's [kind](kvik_kernels::attention::Codec::kind).
    pub encoding: Cow<'static, str>,
    /// Bytes of RAM.
    pub ram_bytes: usize,
    /// Bytes of files, those that are in RAM as well included.
    pub file_bytes: usize,
}

/// Index of an encoding that a store has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding(u8);

impl Encoding {
    /// Rows as they came.
    pub(crate) const BF16: Self = Self(0);
    /// Rows that stand a second time.
    pub(crate) const COPIES: Self = Self(1);
    /// Directions that two layers share.
    pub(crate) const MERGED_LAYERS: Self = Self(2);
}

/// Sums by encoding.
pub(crate) struct Tally(Vec<EncodingBytes>);

impl Default for Tally {
    fn default() -> Self {
        Self(["bf16", "bf16-copies", "merged-layers"].map(|name| named(name.into())).into())
    }
}

fn named(encoding: Cow<'static, str>) -> EncodingBytes {
    EncodingBytes { encoding, ram_bytes: 0, file_bytes: 0 }
}

impl Tally {
    /// The encoding of this name, which is counted from here on.
    pub(crate) fn encoding(&mut self, name: Cow<'static, str>) -> Encoding {
        let found = self.0.iter().position(|sums| sums.encoding == name);
        Encoding(found.unwrap_or_else(|| {
            self.0.push(named(name));
            self.0.len() - 1
        }) as u8)
    }

    /// RAM and file bytes that an encoding has.
    pub(crate) fn of(&mut self, Encoding(index): Encoding) -> &mut EncodingBytes {
        &mut self.0[usize::from(index)]
    }
}

impl KvStore {
    /// Bytes of the blocks in use by encoding, only those that there are. The sums are [`Self::used_bytes`] and
    /// [`Self::file_bytes`].
    pub fn bytes_by_encoding(&self) -> Vec<EncodingBytes> {
        let mut sums = self.tally.0.clone();
        self.for_each_left_behind(|block| {
            let (ram_bytes, file_bytes) = self.ram_and_file_bytes(block);
            let sum = &mut sums[usize::from(self.entry(block).encoding.0)];
            sum.ram_bytes -= ram_bytes;
            sum.file_bytes -= file_bytes;
        });
        sums.retain(|sum| sum.ram_bytes > 0 || sum.file_bytes > 0);
        sums
    }

    /// Says that a block, which may have been called something else, is in `encoding`.
    pub(crate) fn relabel(&mut self, block: Block, encoding: Encoding) {
        let (ram_bytes, file_bytes) = self.ram_and_file_bytes(block);
        let before = std::mem::replace(&mut self.entry_mut(block).encoding, encoding);
        let sum = self.tally.of(before);
        sum.ram_bytes -= ram_bytes;
        sum.file_bytes -= file_bytes;
        let sum = self.tally.of(encoding);
        sum.ram_bytes += ram_bytes;
        sum.file_bytes += file_bytes;
    }

    /// Bytes of RAM and of files that a block takes.
    pub(crate) fn ram_and_file_bytes(&self, block: Block) -> (usize, usize) {
        let ram_bytes = if self.takes_ram(block) { self.block_bytes(block) } else { 0 };
        (ram_bytes, self.spilled.file_bytes_of(block))
    }

    /// Counts every block and holds the sums against what was counted as they came and went.
    ///
    /// # Errors
    /// A sentence that names an encoding with another sum: a defect.
    pub(crate) fn check_tally(&self) -> Result<(), String> {
        let mut sums: Vec<EncodingBytes> =
            self.tally.0.iter().map(|sum| named(sum.encoding.clone())).collect();
        for block in self.blocks_in_use() {
            let (ram_bytes, file_bytes) = self.ram_and_file_bytes(block);
            let sum = &mut sums[usize::from(self.entry(block).encoding.0)];
            sum.ram_bytes += ram_bytes;
            sum.file_bytes += file_bytes;
        }
        let differs = sums.iter().zip(&self.tally.0).find(|(counted, kept)| counted != kept);
        differs.map_or(Ok(()), |(counted, kept)| {
            Err(format!(
                "blocks of {} take {} bytes of RAM and {} of files, and the store counts {} and {}",
                kept.encoding, counted.ram_bytes, counted.file_bytes, kept.ram_bytes, kept.file_bytes
            ))
        })
    }
}
