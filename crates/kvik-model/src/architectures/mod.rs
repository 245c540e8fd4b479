//! The networks that Kvik runs, one file each.
//!
//! A file says what the architecture is called, how Hugging Face names its tensors, how it is built from settings and
//! weights, and how a token walks through it: [`Network::forward`] reads like the paper's figure. A new architecture is
//! one such file and one line in [`ALL`]. Parts that networks share stand in [`crate::layers`]; mixtures of experts and
//! latent attention will be further parts there, used from files here.

mod gemma3;
mod gpt_neox;
pub mod llama;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;

use crate::{
    layers::{Attention, Linear, Pass, Rope, Rows},
    settings::{Settings, SettingsError},
    weights::{Names, Weights, WeightsError},
};

/// Every architecture that Kvik runs.
pub const ALL: &[Architecture] = &[
    llama::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    gemma3::ARCHITECTURE,
    phi3::ARCHITECTURE,
    opt::ARCHITECTURE,
    gpt_neox::ARCHITECTURE,
];

/// What distinguishes an architecture before its weights are read.
pub struct Architecture {
    /// Its name, for people.
    pub name: &'static str,
    /// `general.architecture` in GGUF files.
    pub gguf: &'static str,
    /// `architectures` in a `config.json`.
    pub hugging_face: &'static [&'static str],
    /// Tensor names.
    pub names: &'static Names,
    /// Builds the network.
    pub build: Build,
}

/// Builds a network from a model's settings and weights.
pub type Build = fn(&Settings<'_>, &Weights<'_>) -> Result<Box<dyn Network>, BuildError>;

/// A network with its weights.
pub trait Network: Send + Sync {
    /// Walks the pass's tokens through all layers and the last norm. Returns hidden states `[wanted tokens, hidden]`.
    fn forward(&self, pass: &mut Pass<'_, '_>) -> Rows;

    /// From those to logits.
    fn output(&self) -> &Linear;

    /// The attention of every layer, in the order of the cache's layers.
    fn attention_layers(&self) -> Vec<&Attention>;

    /// The same, to change their weights.
    fn attention_layers_mut(&mut self) -> Vec<&mut Attention>;

    /// What turns the keys of a layer; `None` if nothing does.
    fn rope(&self, layer: usize) -> Option<&Rope>;

    /// Length of a row of logits.
    fn vocabulary(&self) -> usize {
        self.output().out_features()
    }

    /// Positions that the network can tell apart at most, if its embeddings limit them.
    fn position_limit(&self) -> Option<usize> {
        None
    }
}

/// Settings or weights from which no network can be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A setting is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A tensor is wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}
