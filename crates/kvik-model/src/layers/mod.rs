//! The parts that networks are made of.
//!
//! A layer owns its weights and knows one verb: `apply` gives a new matrix of activations, `add_to` adds its result to
//! the residual stream. Matrices are [`Rows`]; whatever a layer needs besides its input comes with the [`Pass`].

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod pass;
mod rope;
mod rows;

pub use attention::{Attention, AttentionParts, QueryKeyNorm};
pub use embedding::{Embedding, PositionEmbedding};
pub use linear::Linear;
pub use mlp::{GatedMlp, Mlp, activation_named};
pub use norm::{LayerNorm, RmsNorm};
pub use pass::{Logits, Pass, Span, Workspace};
pub use rope::{Angles, PairLayout, Rope, RopeScaling, RopeSettings};
pub use rows::Rows;

pub use kvik_kernels::{Activation, Phase};
