//! The arithmetic of Kvik: SIMD kernels with runtime dispatch, and the thread pool that runs them.
//!
//! One source per operation and instruction set. The scalar version is the reference: it states what is computed,
//! and property tests hold the AVX2 and AVX-512 versions to it. Which set runs is chosen once ([`Isa::active`]).
//!
//! Two rules make results independent of threads and of batching:
//! - an output element is computed by one thread, with a fixed order of operations;
//! - that order depends on the element's own row and its [`Phase`] only, never on which other rows share the call.

#![deny(missing_docs)]

mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod disjoint;
mod isa;
pub mod matmul;
mod phase;
mod pool;
mod products;
pub mod quant;
pub mod roofline;
pub mod rows;

pub use activation::Activation;
pub use isa::{Isa, UnknownIsa};
pub use phase::{Phase, Phases};
pub use pool::ThreadPool;
pub use products::products;
