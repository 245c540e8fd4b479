//! Where the numbers of a plane lie, decoded and encoded.
//!
//! A *line* is 64 bytes of the kernels' layout: 16 lanes of 2 numbers each. Keys have tokens as lanes and pairs of dims; values
//! have dims as lanes and pairs of tokens. So keys by channel and values by token are the same: a *series* (a dim of keys, a
//! token of values) has groups along the lanes, and all numbers of a line come from the groups of two series, in turn.

use super::Affine;
use crate::attention::{PlaneKind, TILE_TOKENS, TileShape};

/// Lanes of a line.
pub(super) const LANES: usize = 16;

/// Numbers of a line.
pub(super) const LINE: usize = 2 * LANES;

/// Series whose ranges are read together.
const SERIES: usize = 16;

/// Bytes of the codes of some lines that are loaded together.
pub(super) const CODES: usize = 64;

/// The lines of a plane.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    pub(super) bits: usize,
    /// Pairs of series.
    pub(super) pairs: usize,
    /// Lines along the lanes.
    pub(super) blocks: usize,
    /// Lines along the lanes that a group has; the last one may have fewer.
    pub(super) width: usize,
    /// Decoded numbers from a line to the next along the lanes.
    pub(super) block_stride: usize,
    /// Decoded numbers from a line to that of the next pair.
    pub(super) pair_stride: usize,
}

impl Lines {
    pub(super) fn new(codec: Affine, plane: PlaneKind, dim: usize) -> Self {
        let Affine { bits, group, .. } = codec;
        let shape = TileShape { key_dim: dim, value_dim: dim };
        let width = group / LANES;
        match plane {
            PlaneKind::Keys => {
                let (pairs, blocks) = (shape.key_pairs(), TILE_TOKENS / LANES);
                Self { bits, pairs, blocks, width, block_stride: LINE * pairs, pair_stride: LINE }
            }
            PlaneKind::Values => {
                let (pairs, blocks) = (TILE_TOKENS / 2, shape.value_stride() / LANES);
                Self { bits, pairs, blocks, width, block_stride: LINE, pair_stride: LINE * blocks }
            }
        }
    }

    /// Groups along the lanes.
    pub(super) fn groups(&self) -> usize {
        self.blocks.div_ceil(self.width)
    }

    /// Lines along the lanes of group `group`.
    pub(super) fn width_of(&self, group: usize) -> usize {
        self.width.min(self.blocks - group * self.width)
    }

    /// Lines before those of group `group`: groups follow each other, in each of them the pairs, in each of these the lanes.
    pub(super) fn first_line(&self, group: usize) -> usize {
        group * self.width * self.pairs
    }

    /// Where a decoded line begins.
    pub(super) fn decoded_at(&self, block: usize, pair: usize) -> usize {
        block * self.block_stride + pair * self.pair_stride
    }

    /// Decoded numbers of the plane.
    pub(super) fn numbers(&self) -> usize {
        LINE * self.pairs * self.blocks
    }

    /// Series, padded so that whole vectors of ranges can be read.
    pub(super) fn series(&self) -> usize {
        (2 * self.pairs).next_multiple_of(SERIES)
    }

    /// Byte of the range, smallest number and largest, of the group that `lane` of `series` is in.
    pub(super) fn range_at(&self, lane: usize, series: usize) -> usize {
        4 * (lane / (self.width * LANES) * self.series() + series)
    }

    /// Byte of the first code.
    pub(super) fn codes_at(&self) -> usize {
        4 * self.groups() * self.series()
    }

    /// Lines whose codes share [`CODES`] bytes.
    pub(super) fn lines_of_codes(&self) -> usize {
        8 * CODES / (LINE * self.bits)
    }

    /// Byte of a code, and how far up in it. Codes of 8 bits lie line by line; of smaller ones, each 16-bit word has one number
    /// of several lines.
    pub(super) fn code_at(&self, lane: usize, series: usize) -> (usize, usize) {
        let (block, pair) = (lane / LANES, series / 2);
        let group = block / self.width;
        let line = self.first_line(group) + pair * self.width_of(group) + block % self.width;
        let number = lane % LANES * 2 + series % 2;
        if self.bits == 8 {
            return (self.codes_at() + line * LINE + number, 0);
        }
        let shift = line % self.lines_of_codes() * self.bits;
        (self.codes_at() + line / self.lines_of_codes() * CODES + 2 * number + shift / 8, shift % 8)
    }

    /// Bytes of a block.
    pub(super) fn bytes(&self) -> usize {
        self.codes_at() + (self.pairs * self.blocks).div_ceil(self.lines_of_codes()) * CODES
    }
}
