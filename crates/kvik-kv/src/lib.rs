//! What a sequence remembers: its keys and values, as segments, and the methods that rewrite them.
//!
//! At one layer and one KV head the cache of a sequence is a list of [`Segment`]s; a segment is a run of cached tokens
//! with one way to be read. Attention is a fold over their tiles ([`attend`]), so segments of every kind can stand side by
//! side, and heads and layers may hold different tokens.
//!
//! - [`KvShape`] says what a model caches;
//! - [`KvStore`] holds the blocks of all sequences, in RAM or in files, and counts their bytes;
//! - [`SequenceCache`] is one sequence: [`reserve`](SequenceCache::reserve) room for some tokens,
//!   [`append`](SequenceCache::append) their rows layer by layer, [`commit`](SequenceCache::commit) them;
//! - [`Pipeline`] names the [`Method`]s that rewrite it between steps, through the verbs of [`OpenCache`]; [`methods`] has
//!   them all, one file each;
//! - [`Calibration`] is what a method has learned about one model.
//!
//! Sliding-window layers give back the blocks that no later query can see.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod attend;
mod basis;
pub mod budget;
mod calibration;
mod copies;
mod draw;
mod evidence;
mod export;
mod head;
mod landmarks;
mod method;
pub mod methods;
mod open_cache;
pub mod pipeline;
pub mod positions;
mod prefix;
pub mod principal;
mod segment;
pub mod select;
mod sequence;
mod shape;
mod shared_rows;
mod sink_window;
mod spilled;
mod store;
mod tally;

pub use kvik_kernels::attention::PlaneKind;

pub use attend::{Sequences, attend};
pub use basis::ValueBasis;
pub use calibration::{Calibration, CalibrationError, CalibrationHeader};
pub use copies::RunCopy;
pub use evidence::{Evidence, StepQueries};
pub use head::RowStatistics;
pub use kvik_memory::{PoolExhausted, Slot, SpillError, SpillFile};
pub use method::Method;
pub use open_cache::OpenCache;
pub use pipeline::{
    Arguments, Build, Direction, MethodInfo, Parameter, ParameterKind, Pipeline, PipelineError, Stage,
};
pub use prefix::Held;
pub use segment::{KeyRotation, Magnitudes, Segment, SegmentRow};
pub use sequence::SequenceCache;
pub use shape::{KvShape, LayerShape};
pub use shared_rows::SharedRow;
pub use store::{CacheError, KvStore, KvStoreError};
pub use tally::EncodingBytes;
