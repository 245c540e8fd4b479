//! DuoAttention's gates: how much each KV head needs the whole sequence.
//!
//! Xiao, Tang et al., "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads", ICLR 2025
//! (arXiv 2410.10819). Every KV head has a gate `a` between 0 and 1, at first 1. Of two copies of the frozen model that read the same
//! text side by side, one attends in full; in the other each head's output is `a` times the first copy's plus `1 - a` times its own
//! over sinks and recent tokens only. Gates go down as far as the second copy still ends in the hidden states of the first where pass
//! keys hidden in the text are asked for.

pub mod data;
pub mod streams;
pub mod train;

use serde::{Deserialize, Serialize};

use crate::TrainError;

/// What a training run depends on, besides the model and the text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Optimiser steps, of one sequence each; 2000 in the paper.
    pub steps: usize,
    /// Length of the shortest sequences, in tokens; lengths are drawn evenly.
    pub min_tokens: usize,
    /// Length of the longest sequences, in tokens.
    pub max_tokens: usize,
    /// Pass keys in a sequence; 10 in the paper.
    pub keys: usize,
    /// Words of a pass key; 32 in the paper.
    pub words: usize,
    /// First tokens that streaming heads see; 128 in the paper.
    pub sink: usize,
    /// Last tokens that streaming heads see, a token's own among them; 256 in the paper.
    pub recent: usize,
    /// Learning rate between its ramps; 0.02 in the paper.
    pub learning_rate: f64,
    /// Factor on the mean gate in the loss; 0.05 in the paper.
    pub penalty: f32,
    /// Of the sequences.
    pub seed: u64,
}

impl Settings {
    /// Whether something can be trained with them.
    ///
    /// # Errors
    /// [`TrainError::Setting`] that says what is wrong.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |text: String| Err(TrainError::Setting(text));
        if self.steps == 0 || self.keys == 0 || self.words == 0 || self.recent == 0 {
            return wrong("steps, keys, words and recent must be at least 1".to_owned());
        }
        if self.keys > data::ORDINALS.len() {
            return wrong(format!(
                "at most {} pass keys can be told apart, not {}",
                data::ORDINALS.len(),
                self.keys
            ));
        }
        if self.min_tokens > self.max_tokens {
            return wrong(format!(
                "the shortest sequences have {} tokens and the longest {}: exchange them",
                self.min_tokens, self.max_tokens
            ));
        }
        if self.min_tokens <= self.sink + self.recent {
            return wrong(format!(
                "sequences of {} tokens fit into {} sinks and {} recent tokens: nothing is out of reach of a streaming head",
                self.min_tokens, self.sink, self.recent
            ));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite() && self.penalty.is_finite()) {
            return wrong("the learning rate must be above 0, and the penalty a number".to_owned());
        }
        Ok(())
    }
}
