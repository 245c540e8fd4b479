//! Encodings of cached rows in fewer bits than bf16.
//!
//! Each is a [`Codec`](super::Codec): it says how many bytes a plane of a tile takes, encodes whole groups of rows, and decodes
//! a tile into the layout that the kernels fold. What counts is the decoding, because every query pays for it; blocks are laid
//! out for it.

mod affine;
mod low_rank;

pub use affine::Affine;
pub use low_rank::LowRank;
