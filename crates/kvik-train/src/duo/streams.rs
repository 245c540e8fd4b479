//! The model twice, side by side: with full attention, and with each KV head's gate between full and streaming attention.

use burn::tensor::Tensor;

use super::Settings;
use crate::frozen::{FrozenLlama, Mask};

/// Final hidden states of both copies, `[tokens, hidden]`.
pub struct Streams {
    /// With full attention. No gradient flows through it.
    pub full: Tensor<2>,
    /// With mixed attention.
    pub mixed: Tensor<2>,
}

/// Runs both copies over `tokens`. `gates` are `[layers, kv_heads]`, and used as if between 0 and 1.
///
/// The mixed copy takes full attention from the full copy, as the paper's program does: full attention over its own keys and values,
/// which streaming heads of earlier layers have changed, would be another objective.
///
/// # Panics
/// If a token is not in the vocabulary, or the gates are another model's.
pub fn streams(model: &FrozenLlama, tokens: &[u32], gates: &Tensor<2>, settings: &Settings) -> Streams {
    let device = model.device();
    let mut attended = Vec::with_capacity(model.layers());
    let causal = Mask::causal(tokens.len(), device);
    let full = model.hidden_states(tokens, &causal, |_, full| {
        attended.push(full.clone());
        full
    });
    let gates = gates.clone().clamp(0.0, 1.0);
    let mut attended = attended.into_iter();
    let streaming = Mask::streaming(tokens.len(), settings.sink, settings.recent, device);
    let mixed = model.hidden_states(tokens, &streaming, |layer, streamed| {
        let full = attended.next().expect("both copies have the same layers");
        let gate = of_channels(model, gates.clone().narrow(0, layer, 1));
        full * gate.clone() + streamed * (1.0 - gate)
    });
    Streams { full, mixed }
}

/// A layer's gates, `[1, kv_heads]`, for every channel of its query heads, `[1, heads × head_dim]`.
fn of_channels(model: &FrozenLlama, gates: Tensor<2>) -> Tensor<2> {
    let (kv_heads, channels) = (model.kv_heads(), model.group() * model.head_dim());
    gates.reshape([kv_heads, 1]).repeat_dim(1, channels).reshape([1, kv_heads * channels])
}
