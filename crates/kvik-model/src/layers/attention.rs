//! Self-attention over the cache.

use kvik_kernels::attention::{AttentionShape, Reach, TileShape};
use kvik_kv::LayerShape;

use super::{Angles, Linear, Pass, RmsNorm, Rows};

/// Norms on queries and keys, applied head by head before rotation.
pub struct QueryKeyNorm {
    /// On queries.
    pub query: RmsNorm,
    /// On keys.
    pub key: RmsNorm,
}

/// What an attention layer is made of.
pub struct AttentionParts {
    /// Hidden to `heads × head_dim`.
    pub query: Linear,
    /// Hidden to `kv_heads × head_dim`.
    pub key: Linear,
    /// Hidden to `kv_heads × head_dim`.
    pub value: Linear,
    /// `heads × head_dim` to hidden.
    pub output: Linear,
    /// Norms on queries and keys, for the models that have them.
    pub norm: Option<QueryKeyNorm>,
}

/// Multi-head attention with shared KV heads, over one layer of the cache.
pub struct Attention {
    layer: usize,
    parts: AttentionParts,
    shape: AttentionShape,
}

impl Attention {
    /// Attention at cache layer `layer` with heads of `head_dim`, scores times `scale`, and a sliding `window` of so
    /// many positions if any.
    pub fn new(
        layer: usize,
        parts: AttentionParts,
        head_dim: usize,
        scale: f32,
        window: Option<usize>,
    ) -> Self {
        let shape = AttentionShape {
            heads: parts.query.out_features() / head_dim,
            kv_heads: parts.key.out_features() / head_dim,
            tile: TileShape { key_dim: head_dim, value_dim: head_dim },
            scale,
            reach: Reach { causal: true, window: window.map(|window| window.min(u32::MAX as usize) as u32) },
        };
        Self { layer, parts, shape }
    }

    /// Heads and dimensions.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// True if queries see a sliding window only.
    pub fn is_windowed(&self) -> bool {
        self.shape.reach.window.is_some()
    }

    /// What the layer caches.
    pub fn cache_shape(&self) -> LayerShape {
        LayerShape {
            kv_heads: self.shape.kv_heads,
            key_dim: self.shape.tile.key_dim,
            value_dim: self.shape.tile.value_dim,
            window: self.shape.reach.window.map(|window| window as usize),
        }
    }

    /// Result for every token; queries and keys turn by `angles` if there are any.
    pub fn apply(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>) -> Rows {
        let attended = self.attended(pass, x, angles);
        self.parts.output.apply(pass, &attended)
    }

    /// Adds the result for every token to `sum`.
    pub fn add_to(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>, sum: &mut Rows) {
        let attended = self.attended(pass, x, angles);
        self.parts.output.add_to(pass, &attended, sum);
    }

    fn attended(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>) -> Rows {
        let AttentionParts { query, key, value, norm, .. } = &self.parts;
        let [mut q, mut k, v] = Linear::apply_all([query, key, value], pass, x);
        if let Some(norm) = norm {
            q = norm.query.apply_to_heads(pass, &q);
            k = norm.key.apply_to_heads(pass, &k);
        }
        if let Some(angles) = angles {
            angles.rotate(pass, &mut q, self.shape.tile.key_dim);
            angles.rotate(pass, &mut k, self.shape.tile.key_dim);
        }
        pass.attend(self.layer, &self.shape, &q, &k, &v)
    }
}
