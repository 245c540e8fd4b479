//! How the attention of a batch is cut into items: one KV head of one sequence, for a block of query tokens.

use std::ops::Range;

use super::AttentionShape;
use crate::{Isa, Phase};

/// How the rows of a sequence are folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// A few rows at a time, by [`super::fold`].
    Rows,
    /// The same, with codes where they lie ([`super::fold_coded`]): for so few rows that to decode them costs more than it gains.
    #[cfg(target_arch = "x86_64")]
    Codes,
    /// By the tile unit, in blocks.
    #[cfg(target_arch = "x86_64")]
    Blocks(Phase),
}

impl Kernel {
    pub(super) fn of(isa: Isa, phase: Phase) -> Self {
        match (isa, phase) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, phase) => Self::Blocks(phase),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Bf16, Phase::Decode) => Self::Codes,
            _ => Self::Rows,
        }
    }

    /// True for the tile unit.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn in_blocks(self) -> bool {
        matches!(self, Self::Blocks(_))
    }

    /// Tiles that are folded into one partial before it is merged.
    pub(super) fn span_tiles(self) -> usize {
        match self {
            // 4096 tokens: to merge a prompt's rows costs as much as to fold a few tiles.
            #[cfg(target_arch = "x86_64")]
            Self::Blocks(Phase::Prefill) => 64,
            // 512 tokens, a piece that stays in the L2 cache: what a decoded token's threads share is cut finely.
            _ => 8,
        }
    }

    /// Query rows (tokens × heads of a group) that an item takes on at most, unless one token alone has more.
    pub(super) fn item_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            // Keys and values come from the outer caches once for so many rows.
            Self::Blocks(Phase::Prefill) => 256,
            _ => 64,
        }
    }
}

/// Items below which the work is cut along the cache as well.
pub(super) fn least_items(threads: usize) -> usize {
    4 * threads
}

/// One KV head of one sequence, for some query rows.
#[derive(Clone)]
pub(super) struct Item {
    pub(super) kernel: Kernel,
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) rows: Range<usize>,
}

/// Query rows of a sequence, counted over the batch, and how they are folded.
pub(super) struct SequenceRows {
    pub(super) rows: Range<usize>,
    pub(super) kernel: Kernel,
}

/// How the rows of a batch are cut into items.
pub(super) struct Items<'a> {
    shape: &'a AttentionShape,
    sequences: &'a [SequenceRows],
    /// Most query rows of a prompt's item for the tile unit; what a row gives does not depend on it.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "there is no tile unit"))]
    most_rows: usize,
}

impl<'a> Items<'a> {
    /// At least `least` items if halving those of prompts for the tile unit allows it.
    pub(super) fn new(shape: &'a AttentionShape, sequences: &'a [SequenceRows], least: usize) -> Self {
        let mut items = Self { shape, sequences, most_rows: usize::MAX };
        for most_rows in [128, 64, 32, 16] {
            if items.count() < least {
                items.most_rows = most_rows;
            }
        }
        items
    }

    /// Tokens of an item of `sequence`.
    pub(super) fn tokens(&self, sequence: &SequenceRows) -> usize {
        let rows = match sequence.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Blocks(Phase::Prefill) => sequence.kernel.item_rows().min(self.most_rows),
            kernel => kernel.item_rows(),
        };
        (rows / self.shape.group()).max(1)
    }

    pub(super) fn count(&self) -> usize {
        let of = |sequence: &SequenceRows| sequence.rows.len().div_ceil(self.tokens(sequence));
        self.sequences.iter().map(|sequence| of(sequence) * self.shape.kv_heads).sum()
    }

    /// Later rows see more tokens: they come first, so that the last pieces to be handed out are the short ones.
    pub(super) fn get(&self, mut index: usize) -> Item {
        let kv_heads = self.shape.kv_heads;
        for (number, sequence) in self.sequences.iter().enumerate() {
            let SequenceRows { rows, kernel } = sequence;
            let tokens = self.tokens(sequence);
            let blocks = rows.len().div_ceil(tokens);
            if index < blocks * kv_heads {
                let start = rows.start + (blocks - 1 - index % blocks) * tokens;
                let rows = start..rows.end.min(start + tokens);
                return Item { kernel: *kernel, sequence: number, kv_head: index / blocks, rows };
            }
            index -= blocks * kv_heads;
        }
        unreachable!("items are counted by the same rule")
    }
}
