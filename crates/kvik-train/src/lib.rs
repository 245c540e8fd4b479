//! Calibration that needs gradients: the autograd side of Kvik.
//!
//! Some KV methods learn a few numbers per model, once, with the model's weights frozen. Kvik's kernels run forward only, so
//! here the network is written a second time over an autograd library; what comes out is a calibration file that `kvik-kv` reads.
//!
//! - [`frozen`] reads a model of Llama's architecture and runs it on f32 constants;
//! - [`duo`] trains DuoAttention's gates: [`duo::streams`] is its network of two streams, [`duo::data`] its pass keys,
//!   [`duo::train`] its loss and optimiser.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod duo;
mod error;
pub mod frozen;

pub use error::TrainError;
