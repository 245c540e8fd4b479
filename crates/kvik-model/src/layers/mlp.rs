//! The feed-forward part of a block.

use kvik_kernels::{
    Activation,
    matmul::{GatedProduct, matmul_gated},
};

use super::{Linear, Pass, Rows};

/// The activation that Hugging Face configurations call `name`.
pub fn activation_named(name: &str) -> Option<Activation> {
    match name {
        "silu" | "swish" => Some(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Activation::GeluTanh),
        "gelu" => Some(Activation::Gelu),
        "relu" => Some(Activation::Relu),
        _ => None,
    }
}

/// `down(activation(gate x) · up x)` (Shazeer 2020).
pub struct GatedMlp {
    /// Hidden to intermediate, through the activation.
    pub gate: Linear,
    /// Hidden to intermediate.
    pub up: Linear,
    /// Intermediate to hidden.
    pub down: Linear,
    /// Non-linearity on the gate.
    pub activation: Activation,
}

impl GatedMlp {
    /// Result for every row.
    pub fn apply(&self, pass: &mut Pass<'_, '_>, x: &Rows) -> Rows {
        let hidden = self.hidden(pass, x);
        self.down.apply(pass, &hidden)
    }

    /// Adds the result for every row to `sum`.
    pub fn add_to(&self, pass: &mut Pass<'_, '_>, x: &Rows, sum: &mut Rows) {
        let hidden = self.hidden(pass, x);
        self.down.add_to(pass, &hidden, sum);
    }

    fn hidden(&self, pass: &mut Pass<'_, '_>, x: &Rows) -> Rows {
        let Self { gate, up, activation, .. } = self;
        let are_alike = gate.weight.ty() == up.weight.ty() && gate.bias.is_none() && up.bias.is_none();
        if are_alike {
            let mut out = Rows::new(x.rows(), gate.out_features());
            let pool = pass.pool;
            let acts = pass.prepare(x, [&gate.weight, &up.weight]);
            let (gate, up, activation) = (&gate.weight, &up.weight, *activation);
            matmul_gated(pool, acts, GatedProduct { gate, up, activation, out: &mut out });
            return out;
        }
        let [mut gate, up] = Linear::apply_all([gate, up], pass, x);
        gate.for_each(pass.pool, |index, gate| activation.gate(gate, up.row(index)));
        gate
    }
}

/// `down(activation(up x))`
pub struct Mlp {
    /// Hidden to intermediate, through the activation.
    pub up: Linear,
    /// Intermediate to hidden.
    pub down: Linear,
    /// Non-linearity in between.
    pub activation: Activation,
}

impl Mlp {
    /// Adds the result for every row to `sum`.
    pub fn add_to(&self, pass: &mut Pass<'_, '_>, x: &Rows, sum: &mut Rows) {
        let mut hidden = self.up.apply(pass, x);
        hidden.for_each(pass.pool, |_, row| self.activation.apply(row));
        self.down.add_to(pass, &hidden, sum);
    }
}
