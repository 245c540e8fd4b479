//! Low-rank rows: a row as a few coefficients over directions that all rows of a layer share.
//!
//! The keys of a layer before rotation, all KV heads side by side, lie near a space of few dimensions (ShadowKV, Sun et al.,
//! ICML 2025): a token's keys are `[rank]` coefficients times `[rank, heads · dim]` directions. The coefficients serve all heads of
//! the layer, which share the block that holds them; each head's codec has its own columns of the directions and gives that
//! head's keys. Coefficients and directions are bf16, sums are f32.
//!
//! # Layout
//! A block holds the coefficients, `[TILE_TOKENS, rank]`, the rank padded to an even number with zeros. Directions lie in pairs,
//! `[pair][dim][2]`, dims padded to whole vectors, so that one 64-byte load gives 16 dims of two directions.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::{borrow::Cow, ops::Range, sync::Arc};

use crate::{
    Isa,
    attention::{Codec, PlaneKind, TILE_TOKENS, TileShape, from_bf16, to_bf16},
};

/// Dims of a vector.
const LANES: usize = 16;

/// The codec of one head; the module says what it does.
///
/// What [`Codec::encode`] takes are coefficients (`[n, rank]`, its `dim` is the rank): they are made from the rows of all heads
/// together, which no single head has.
#[derive(Clone, Debug)]
pub struct LowRank {
    rank: usize,
    dim: usize,
    /// bf16, `[pairs of directions][stride][2]`.
    directions: Vec<u16>,
    isa: Isa,
}

impl LowRank {
    /// The codecs of the heads of a layer, from the directions that they share, `[rank, heads · dim]`.
    ///
    /// # Panics
    /// If `directions` do not fit `rank` and `heads`, or one of them is 0.
    pub fn heads(directions: &[f32], rank: usize, heads: usize) -> Vec<Arc<Self>> {
        let width = directions.len() / rank;
        assert_eq!(directions.len(), rank * width);
        assert_eq!(width % heads, 0, "heads have the same dims");
        let dim = width / heads;
        let head = |head: usize| {
            let stride = dim.next_multiple_of(LANES);
            let mut own = vec![0; rank.div_ceil(2) * stride * 2];
            for (index, direction) in directions.chunks_exact(width).enumerate() {
                for (at, &x) in direction[head * dim..][..dim].iter().enumerate() {
                    own[(index / 2 * stride + at) * 2 + index % 2] = to_bf16(x);
                }
            }
            Arc::new(Self { rank, dim, directions: own, isa: Isa::active() })
        };
        (0..heads).map(head).collect()
    }

    /// The same codec, which rebuilds by the instructions of `isa`.
    pub fn on(self, isa: Isa) -> Self {
        Self { isa: isa.min(Isa::detect()), ..self }
    }

    /// Coefficients of a row.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of the directions.
    pub fn bytes(&self) -> usize {
        2 * self.directions.len()
    }

    /// The head's part of a direction, as it is stored, `[dim]`.
    pub fn direction(&self, index: usize) -> Vec<f32> {
        let at = |dim: usize| (index / 2 * self.stride() + dim) * 2 + index % 2;
        (0..self.dim).map(|dim| from_bf16(self.directions[at(dim)])).collect()
    }

    fn pairs(&self) -> usize {
        self.rank.div_ceil(2)
    }

    fn stride(&self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Rebuilds `rows` of a block into `out`, `[rows, dim]`.
    fn rebuild(&self, rows: Range<usize>, block: &[u8], out: &mut [f32]) {
        let pairs = self.pairs();
        let coefficients = &block[rows.start * 4 * pairs..rows.end * 4 * pairs];
        assert_eq!(out.len(), rows.len() * self.dim);
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: such an `Isa` exists on a processor that has it only; there are `4 · pairs` bytes of coefficients and `dim`
            // numbers of `out` for each row, and `pairs · stride` pairs of directions.
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe {
                avx512::rebuild(self.dim, self.stride(), &self.directions, coefficients, out)
            },
            _ => self.rebuild_scalar(coefficients, out),
        }
    }

    fn rebuild_scalar(&self, coefficients: &[u8], out: &mut [f32]) {
        out.fill(0.0);
        let rows = coefficients.chunks_exact(4 * self.pairs()).zip(out.chunks_exact_mut(self.dim));
        for (coefficients, out) in rows {
            let pairs = coefficients.chunks_exact(4).zip(self.directions.chunks_exact(2 * self.stride()));
            for (c, directions) in pairs {
                let [even, odd] = [[c[0], c[1]], [c[2], c[3]]].map(|c| from_bf16(u16::from_le_bytes(c)));
                for (out, d) in out.iter_mut().zip(directions.chunks_exact(2)) {
                    *out += even * from_bf16(d[0]) + odd * from_bf16(d[1]);
                }
            }
        }
    }
}

impl Codec for LowRank {
    fn name(&self) -> String {
        let hash = self
            .directions
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &x| (hash ^ u64::from(x)).wrapping_mul(0x100_0000_01b3));
        format!("low-rank({},{hash:016x})", self.rank)
    }

    fn kind(&self) -> Cow<'static, str> {
        "low-rank".into()
    }

    fn block_bytes(&self, _plane: PlaneKind, _dim: usize) -> usize {
        TILE_TOKENS * 4 * self.pairs()
    }

    fn group_rows(&self, _plane: PlaneKind) -> usize {
        1
    }

    fn encode(&self, _plane: PlaneKind, dim: usize, first: usize, rows: &[f32], block: &mut [u8]) {
        assert_eq!(dim, self.rank, "coefficients are encoded, not rows");
        let blocks = block[first * 4 * self.pairs()..].chunks_exact_mut(4 * self.pairs());
        for (row, block) in rows.chunks_exact(dim).zip(blocks) {
            for (&x, bytes) in row.iter().zip(block.chunks_exact_mut(2)) {
                bytes.copy_from_slice(&to_bf16(x).to_le_bytes());
            }
        }
    }

    fn decode_rows(&self, _plane: PlaneKind, dim: usize, rows: Range<usize>, block: &[u8], out: &mut [f32]) {
        assert_eq!(dim, self.dim);
        self.rebuild(rows, block, out);
    }

    fn decode(&self, plane: PlaneKind, dim: usize, rows: usize, block: &[u8], out: &mut [u16]) {
        assert_eq!(dim, self.dim);
        let mut rebuilt = vec![0.0; rows * dim];
        self.rebuild(0..rows, block, &mut rebuilt);
        let shape = TileShape { key_dim: dim, value_dim: dim };
        for (slot, row) in rebuilt.chunks_exact(dim).enumerate() {
            shape.write_row(plane, out, slot, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_are_coefficients_times_directions(
            rank in 1usize..40, heads in 1usize..4, dim in 1usize..150, seed in any::<u32>(), start in 0usize..64, end in 0usize..65,
        ) {
            let noise = |index: usize| {
                let bits = (index as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9);
                from_bf16(to_bf16(f32::from((bits >> 16) as u16) / 32768.0 - 1.0))
            };
            let directions: Vec<f32> = (0..rank * heads * dim).map(noise).collect();
            let coefficients: Vec<f32> = (0..TILE_TOKENS * rank).map(|i| noise(i + 7_000_000)).collect();
            let rows = start.min(end)..end;
            for (head, codec) in LowRank::heads(&directions, rank, heads).into_iter().enumerate() {
                let mut block = vec![0; codec.block_bytes(PlaneKind::Keys, dim)];
                codec.encode(PlaneKind::Keys, rank, 0, &coefficients, &mut block);
                for isa in [Isa::Scalar, Isa::detect()] {
                    let codec = (*codec).clone().on(isa);
                    let mut out = vec![f32::NAN; rows.len() * dim];
                    codec.rebuild(rows.clone(), &block, &mut out);
                    for (row, out) in rows.clone().zip(out.chunks_exact(dim)) {
                        for (at, &got) in out.iter().enumerate() {
                            let want: f64 = (0..rank)
                                .map(|r| f64::from(coefficients[row * rank + r]) * f64::from(directions[(r * heads + head) * dim + at]))
                                .sum();
                            prop_assert!((f64::from(got) - want).abs() < 1e-4, "{isa:?} {got} {want}");
                        }
                    }
                    let shape = TileShape { key_dim: dim, value_dim: dim };
                    let mut plane = vec![0; shape.key_len()];
                    codec.decode(PlaneKind::Keys, dim, 64, &block, &mut plane);
                    if let Some(row) = rows.clone().next() {
                        let mut read = vec![0.0; dim];
                        shape.read_row(PlaneKind::Keys, &plane, row, &mut read);
                        for (read, out) in read.iter().zip(&out) {
                            prop_assert_eq!(*read, from_bf16(to_bf16(*out)));
                        }
                    }
                }
                for r in 0..rank {
                    prop_assert_eq!(&codec.direction(r)[..], &directions[(r * heads + head) * dim..][..dim]);
                }
            }
        }
    }
}
