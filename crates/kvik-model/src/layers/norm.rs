//! Norms over a token's features.

use kvik_kernels::rows::{layer_norm, rms_norm};

use super::{Pass, Rows};

/// Root-mean-square norm: `x / sqrt(mean(x²) + epsilon) · weight`.
pub struct RmsNorm {
    /// `[features]`
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl RmsNorm {
    /// Norm of every row.
    pub fn apply(&self, pass: &Pass<'_, '_>, x: &Rows) -> Rows {
        let mut out = Rows::new(x.rows(), x.cols());
        out.for_each(pass.pool, |index, row| rms_norm(x.row(index), &self.weight, self.epsilon, row));
        out
    }

    /// Norm of every head: `x` is `[tokens, heads × head_dim]`, the weight `[head_dim]`.
    pub fn apply_to_heads(&self, pass: &Pass<'_, '_>, x: &Rows) -> Rows {
        let mut out = Rows::new(x.rows(), x.cols());
        let head_dim = self.weight.len();
        out.for_each(pass.pool, |index, row| {
            for (out, head) in row.chunks_exact_mut(head_dim).zip(x.row(index).chunks_exact(head_dim)) {
                rms_norm(head, &self.weight, self.epsilon, out);
            }
        });
        out
    }
}

/// Layer norm: `(x - mean) / sqrt(variance + epsilon) · weight + bias`.
pub struct LayerNorm {
    /// `[features]`
    pub weight: Vec<f32>,
    /// `[features]`
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

impl LayerNorm {
    /// Norm of every row.
    pub fn apply(&self, pass: &Pass<'_, '_>, x: &Rows) -> Rows {
        let mut out = Rows::new(x.rows(), x.cols());
        out.for_each(pass.pool, |index, row| {
            layer_norm(x.row(index), &self.weight, &self.bias, self.epsilon, row);
        });
        out
    }
}
