//! What a model caches: heads and dimensions, layer by layer.

use std::sync::Arc;

use kvik_kernels::attention::{PlaneKind, Rotary, TILE_TOKENS, TileShape};

/// Cache of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// KV heads.
    pub kv_heads: usize,
    /// Length of a key.
    pub key_dim: usize,
    /// Length of a value.
    pub value_dim: usize,
    /// A query sees this many positions, its own included; `None` for all.
    pub window: Option<usize>,
}

impl LayerShape {
    /// Head dimensions as the attention kernels take them.
    pub fn tile(&self) -> TileShape {
        TileShape { key_dim: self.key_dim, value_dim: self.value_dim }
    }

    /// Bytes of the block that holds a plane of one tile as bf16 rows.
    pub fn plane_bytes(&self, plane: PlaneKind) -> usize {
        (2 * self.tile().plane(plane).1).next_multiple_of(64)
    }

    /// Tokens of a sequence of `tokens` that the layer has room for at once, when `step_tokens` are added in a step: all of them, or
    /// those of its window and of a step, both of which may start and end inside a tile.
    pub(crate) fn kept_tokens(&self, tokens: usize, step_tokens: usize) -> usize {
        let most = |window: usize| window.saturating_add(step_tokens).saturating_add(TILE_TOKENS);
        self.window.map_or(tokens, |window| tokens.min(most(window)))
    }
}

/// Cache of a whole model.
#[derive(Clone, Debug, PartialEq)]
pub struct KvShape {
    /// One entry per layer.
    pub layers: Vec<LayerShape>,
    /// How each layer's keys are rotated; `None` where they are not.
    pub rotary: Vec<Option<Arc<Rotary>>>,
    /// Which model this is, for calibrations that hold for one model only; empty if nobody can say.
    pub fingerprint: String,
    /// The stages of a pipeline that are built into the model's weights; empty for the weights of the file.
    pub basis: String,
}

impl KvShape {
    /// Layers whose keys are not rotated.
    pub fn unrotated(layers: Vec<LayerShape>) -> Self {
        let rotary = vec![None; layers.len()];
        Self { layers, rotary, fingerprint: String::new(), basis: String::new() }
    }

    /// Bytes of a plain bf16 cache of `tokens` tokens that keeps every token at every layer: the yardstick that
    /// savings are measured against.
    pub fn bf16_bytes(&self, tokens: usize) -> usize {
        let per_token = self.layers.iter().map(|l| l.kv_heads * (l.key_dim + l.value_dim) * 2).sum::<usize>();
        per_token * tokens
    }

    /// Bytes of the blocks that a sequence of `tokens` tokens takes before methods rewrite it: whole tiles at every layer and head.
    /// Of sliding-window layers it holds the window, and the `step_tokens` that come at once.
    pub fn block_bytes(&self, tokens: usize, step_tokens: usize) -> usize {
        let layer_bytes = |layer: &LayerShape| {
            let planes = [PlaneKind::Keys, PlaneKind::Values].map(|plane| layer.plane_bytes(plane));
            layer.kept_tokens(tokens, step_tokens).div_ceil(TILE_TOKENS)
                * layer.kv_heads
                * planes.iter().sum::<usize>()
        };
        self.layers.iter().map(layer_bytes).sum()
    }

    /// Layers that see the whole sequence: those whose cache grows with it, and that methods rewrite. Sliding windows bound
    /// theirs already.
    pub fn full_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|&layer| self.layers[layer].window.is_none())
    }
}
