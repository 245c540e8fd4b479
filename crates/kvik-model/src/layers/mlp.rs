//! The feed-forward part of a block.

use kvik_kernels::rows::{gelu_erf, gelu_tanh, gelu_tanh_mul, relu, silu, silu_mul};

use super::{Linear, Pass, Rows};

/// Non-linearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU, tanh form.
    GeluTanh,
    /// GELU, exact form.
    Gelu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The activation that Hugging Face configurations call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Self::GeluTanh),
            "gelu" => Some(Self::Gelu),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    fn apply(self, x: &mut [f32]) {
        match self {
            Self::Silu => silu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Gelu => gelu_erf(x),
            Self::Relu => relu(x),
        }
    }

    /// `gate = activation(gate) · up`
    fn apply_gate(self, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => silu_mul(gate, up),
            Self::GeluTanh => gelu_tanh_mul(gate, up),
            Self::Gelu | Self::Relu => {
                self.apply(gate);
                gate.iter_mut().zip(up).for_each(|(gate, &up)| *gate *= up);
            }
        }
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
        let [mut gate, up] = Linear::apply_all([&self.gate, &self.up], pass, x);
        gate.for_each(pass.pool, |index, gate| self.activation.apply_gate(gate, up.row(index)));
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
