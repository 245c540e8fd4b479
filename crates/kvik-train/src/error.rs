//! Why a calibration cannot be trained.

use kvik_eval::EvalError;
use kvik_model::{CheckpointError, ModelError, tokenizer::TokenizerError};

/// Why a calibration cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's files cannot be opened.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model cannot be loaded.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model is of another architecture.
    #[error(
        "the model's architecture is {0}, and training knows Llama's only (Llama 2 and 3, SmolLM2, Mistral without a window)"
    )]
    OtherArchitecture(&'static str),
    /// The model's layers see a window only.
    #[error(
        "the model's attention sees a sliding window only: there is no long attention to tell heads apart by"
    )]
    Windowed,
    /// The model's tokenizer cannot be read, or cannot express a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is no text for the haystack.
    #[error(transparent)]
    Data(#[from] EvalError),
    /// Sequences are too short for what they must hold.
    #[error(
        "{tokens} tokens are too few: pass keys and questions alone take up to {needed}; ask for longer sequences, or for fewer or shorter keys"
    )]
    TooShort {
        /// Tokens asked for.
        tokens: usize,
        /// Tokens that are not haystack.
        needed: usize,
    },
    /// A setting that nothing can be trained with.
    #[error("{0}")]
    Setting(String),
    /// The loss is no number any more.
    #[error(
        "the loss is {loss} in step {step}: the learning rate is too high, or the model's numbers overflow"
    )]
    Diverged {
        /// The step, from 1.
        step: usize,
        /// Its loss.
        loss: f32,
    },
}
