//! Encodings of cached rows in fewer bits than bf16.
//!
//! Each is a [`Codec`](super::Codec): it says how many bytes a plane of a tile takes, encodes whole groups of rows, and decodes
//! a tile into the layout that the kernels fold. What counts is the decoding, because every query pays for it; blocks are laid
//! out for it. Affine codes need none of it where few rows attend to them: see [`Affine`]'s module.

mod affine;
mod low_rank;

use std::sync::Arc;

pub use affine::Affine;
#[cfg(target_arch = "x86_64")]
pub(super) use affine::Codes;
pub use low_rank::LowRank;

use super::Codec;

/// The encoding that calls itself `name` ([`Codec::name`]), for exported caches.
pub fn codec(name: &str) -> Option<Arc<dyn Codec>> {
    Affine::named(name).map(|codec| Arc::new(codec) as Arc<dyn Codec>)
}
