//! What a model caches: heads and dimensions, layer by layer.

use kvik_kernels::attention::TileShape;

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
}

/// Cache of a whole model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// One entry per layer.
    pub layers: Vec<LayerShape>,
}

impl KvShape {
    /// Bytes of a plain bf16 cache of `tokens` tokens that keeps every token at every layer: the yardstick that
    /// savings are measured against.
    pub fn bf16_bytes(&self, tokens: usize) -> usize {
        let per_token = self.layers.iter().map(|l| l.kv_heads * (l.key_dim + l.value_dim) * 2).sum::<usize>();
        per_token * tokens
    }
}
