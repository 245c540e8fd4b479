//! Activation functions of feed-forward layers.
//!
//! Written lane by lane in plain Rust that the compiler vectorises, so that a loop over numbers that are in registers already (the
//! sums of a product) can use them too.

use crate::rows::{exp_lane, per_isa};

/// The non-linearity of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// GELU in its tanh form (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// GELU in its exact form, `x · Φ(x)`.
    Gelu,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// Of one number.
    #[inline(always)]
    pub(crate) fn of(self, x: f32) -> f32 {
        match self {
            Self::Silu => x / (1.0 + exp_lane(-x)),
            Self::GeluTanh => gelu_tanh_lane(x),
            Self::Gelu => x * (0.5 * (1.0 + erf_lane(x * std::f32::consts::FRAC_1_SQRT_2))),
            Self::Relu => x.max(0.0),
        }
    }

    /// Of every number, in place.
    pub fn apply(self, x: &mut [f32]) {
        match self {
            Self::Silu => silu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Gelu => gelu(x),
            Self::Relu => relu(x),
        }
    }

    /// `gate = activation(gate) · up` (Shazeer 2020). Both slices have the same length.
    pub fn gate(self, gate: &mut [f32], up: &[f32]) {
        match self {
            Self::Silu => silu_gate(gate, up),
            Self::GeluTanh => gelu_tanh_gate(gate, up),
            Self::Gelu => gelu_gate(gate, up),
            Self::Relu => relu_gate(gate, up),
        }
    }
}

/// [`Activation::apply`] and [`Activation::gate`] of one activation, compiled for each instruction set.
macro_rules! loops {
    ($($activation:ident: $apply:ident, $gate:ident;)*) => {$(
        per_isa! {
        fn $apply(x: &mut [f32]) {
            for x in x {
                *x = Activation::$activation.of(*x);
            }
        }
        }
        per_isa! {
        fn $gate(gate: &mut [f32], up: &[f32]) {
            for (gate, &up) in gate.iter_mut().zip(up) {
                *gate = Activation::$activation.of(*gate) * up;
            }
        }
        }
    )*};
}

loops! {
    Silu: silu, silu_gate;
    GeluTanh: gelu_tanh, gelu_tanh_gate;
    Gelu: gelu, gelu_gate;
    Relu: relu, relu_gate;
}

/// `tanh x` through one exponential; exact signs and limits.
#[inline(always)]
fn tanh_lane(x: f32) -> f32 {
    let e = exp_lane(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

#[inline(always)]
fn gelu_tanh_lane(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh_lane(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

/// Error function, absolute error below 3e-7: formula 7.1.26 of Abramowitz and Stegun (1964) with an f32 exponential.
#[inline(always)]
fn erf_lane(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let mut p = 1.061_405_4;
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = p * t + c;
    }
    (1.0 - p * t * exp_lane(-x * x)).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(activation: Activation, tolerance: f64, want: impl Fn(f64) -> f64) {
        let x: Vec<f32> = (0..=400).map(|i| -12.0 + 24.0 * i as f32 / 400.0).collect();
        let (mut applied, mut gated) = (x.clone(), x.clone());
        activation.apply(&mut applied);
        activation.gate(&mut gated, &vec![2.0; x.len()]);
        for (i, &x) in x.iter().enumerate() {
            let want = want(f64::from(x));
            for got in [applied[i], gated[i] / 2.0] {
                let error = (f64::from(got) - want).abs();
                assert!(error <= tolerance * want.abs().max(1.0), "{activation:?}({x}) is {got}, not {want}");
            }
        }
    }

    #[test]
    fn activations_match_their_formulas() {
        close(Activation::GeluTanh, 2e-6, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        });
        close(Activation::Silu, 2e-6, |x| x / (1.0 + (-x).exp()));
        close(Activation::Relu, 0.0, |x| x.max(0.0));
        // Φ by Simpson's rule on the normal density: an oracle that shares nothing with the approximation.
        close(Activation::Gelu, 3e-6, |x| {
            let (n, density) = (2000, |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt());
            let h = x / f64::from(n);
            let inner: f64 =
                (1..n).map(|i| density(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
            x * (0.5 + h / 3.0 * (density(0.0) + density(x) + inner))
        });
    }
}
