//! Rotary position embeddings (Su et al. 2021) and their scalings to longer contexts.
//!
//! A pair of dims `i` turns by `position · frequency[i]`. The scalings change the frequencies, once, when the model is
//! loaded. Two of them depend on the context: "dynamic" stretches the base to it, "longrope" has one set of factors up
//! to the original context and one beyond. Here the context is the one that the model is opened with, not the number of
//! tokens so far, so that a key rotated early and a key rotated late agree.

use std::f32::consts::PI;

use kvik_kernels::{
    attention::Rotary,
    rows::{rotate_halves, rotate_pairs},
};

pub use kvik_kernels::attention::PairLayout;

use super::{Pass, Rows};

/// A change to the frequencies, for contexts longer than the one first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions divided by a factor (Chen et al. 2023).
    Linear {
        /// Divisor of every frequency.
        factor: f32,
    },
    /// Base stretched to the context ("dynamic NTK").
    Dynamic {
        /// How the base grows with the context.
        factor: f32,
        /// Context trained on.
        original_context: usize,
    },
    /// Low frequencies interpolated, high ones kept (Peng et al. 2023).
    Yarn {
        /// Context now over context trained on.
        factor: f32,
        /// Context trained on.
        original_context: usize,
        /// Rotations over the original context from which a frequency is kept; 32 in the paper.
        beta_fast: f32,
        /// Rotations up to which it is interpolated; 1 in the paper.
        beta_slow: f32,
        /// Factor on cosine and sine; `0.1 ln(factor) + 1` if not given.
        attention_factor: Option<f32>,
    },
    /// Llama 3's smooth step between kept and divided frequencies.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / this` are divided.
        low_frequency_factor: f32,
        /// Wavelengths below `original_context / this` are kept.
        high_frequency_factor: f32,
        /// Context trained on.
        original_context: usize,
    },
    /// A divisor for each frequency, given by the model.
    Divisors {
        /// `[rotary_dims / 2]`
        divisors: Vec<f32>,
        /// Factor on cosine and sine.
        attention_factor: f32,
    },
}

/// What a rotary embedding is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSettings {
    /// Dims of a head that turn, from the first on; even.
    pub rotary_dims: usize,
    /// Base of the geometric series of wavelengths.
    pub base: f32,
    /// Change for longer contexts.
    pub scaling: Option<RopeScaling>,
    /// Which dims turn together.
    pub layout: PairLayout,
}

/// A rotary embedding, ready to give angles.
pub struct Rope {
    rotary: Rotary,
}

impl Rope {
    /// Frequencies for a model opened with a context of `context_tokens`.
    pub fn new(settings: &RopeSettings, context_tokens: usize) -> Self {
        let dims = settings.rotary_dims as f32;
        let series = |base: f32| -> Vec<f32> {
            (0..settings.rotary_dims / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / dims)).collect()
        };
        let mut frequencies = series(settings.base);
        let mut attention = 1.0;
        match &settings.scaling {
            None => {}
            Some(RopeScaling::Linear { factor }) => frequencies.iter_mut().for_each(|f| *f /= factor),
            Some(RopeScaling::Dynamic { factor, original_context }) => {
                let stretch = context_tokens.max(*original_context) as f32 / *original_context as f32;
                let growth = (factor * stretch - (factor - 1.0)).powf(dims / (dims - 2.0));
                frequencies = series(settings.base * growth);
            }
            Some(RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor }) => {
                // The dim whose frequency makes so many rotations over the original context.
                let dim_of = |rotations: f32| {
                    dims * (*original_context as f32 / (rotations * 2.0 * PI)).ln()
                        / (2.0 * settings.base.ln())
                };
                let low = dim_of(*beta_fast).floor().max(0.0);
                let high = dim_of(*beta_slow).ceil().min(dims - 1.0);
                let width = if high > low { high - low } else { 0.001 };
                for (i, frequency) in frequencies.iter_mut().enumerate() {
                    let interpolated = ((i as f32 - low) / width).clamp(0.0, 1.0);
                    *frequency = *frequency / factor * interpolated + *frequency * (1.0 - interpolated);
                }
                attention = attention_factor.unwrap_or(0.1 * factor.max(1.0).ln() + 1.0);
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context,
            }) => {
                for frequency in &mut frequencies {
                    let rotations = *original_context as f32 * *frequency / (2.0 * PI);
                    let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = *frequency / factor * (1.0 - kept) + *frequency * kept;
                }
            }
            Some(RopeScaling::Divisors { divisors, attention_factor }) => {
                frequencies.iter_mut().zip(divisors).for_each(|(f, divisor)| *f /= divisor);
                attention = *attention_factor;
            }
        }
        Self { rotary: Rotary { frequencies, factor: attention, layout: settings.layout } }
    }

    /// Frequencies, factor and layout, as the cache needs them to undo or redo a rotation.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// Angles of the pass's positions: computed once, used by every layer.
    pub fn angles(&self, pass: &Pass<'_, '_>) -> Angles {
        let pairs = self.rotary.frequencies.len();
        let positions = pass.positions();
        let mut table = Rows::new(positions.len(), 2 * pairs);
        table.for_each(pass.pool, |index, row| {
            let (cos, sin) = row.split_at_mut(pairs);
            for (pair, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                (*cos, *sin) = self.rotary.angle(positions[index], pair);
            }
        });
        Angles { table, layout: self.rotary.layout }
    }
}

/// Cosines and sines of a pass's positions.
pub struct Angles {
    /// `[tokens, 2 × pairs]`: cosines, then sines.
    table: Rows,
    layout: PairLayout,
}

impl Angles {
    /// Turns every head of `x` (`[tokens, heads × head_dim]`) by its token's angles.
    pub fn rotate(&self, pass: &Pass<'_, '_>, x: &mut Rows, head_dim: usize) {
        let rotate = match self.layout {
            PairLayout::Halves => rotate_halves,
            PairLayout::Neighbours => rotate_pairs,
        };
        let pairs = self.table.cols() / 2;
        x.for_each(pass.pool, |index, row| {
            let (cos, sin) = self.table.row(index).split_at(pairs);
            for head in row.chunks_exact_mut(head_dim) {
                rotate(&mut head[..2 * pairs], cos, sin);
            }
        });
    }
}
