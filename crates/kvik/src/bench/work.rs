//! What a model's forward passes cost at least: bytes and operations, counted from shapes.
//!
//! A pass adds `n` tokens to each of `s` sequences that have `p` tokens already. With `W` the model's matrices, it
//!
//! - reads every matrix of the layers once, the vocabulary's once if it wants logits, and of each sequence's cache the
//!   rows that a query sees, in bf16;
//! - multiplies `s · n` rows with the layers' matrices and `s` with the vocabulary's: 2 operations per number, twice
//!   for quantised ones, because activations come in two planes of 8 bits; but a prompt's rows are multiplied once, in bf16, with
//!   the layers' matrices, on instruction sets that do so;
//! - multiplies each query head with every key and value that its query sees: `2 · (key_dim + value_dim)` operations.
//!
//! What is small beside these (activations, norms, embeddings) is left out, so the limits are true limits.

use kvik_kernels::{Isa, Phase, attention::AttentionShape};
use kvik_model::{
    Model,
    weights::{StepWeights, WeightCount},
};

/// Planes of 8 bits that activations are split into where they meet quantised weights.
pub const ACTIVATION_PLANES: f64 = 2.0;

/// Bytes read and operations done; a multiplication and an addition count as one each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes that come from memory.
    pub bytes: f64,
    /// Operations in 8-bit dot products.
    pub int8_ops: f64,
    /// Operations in bf16 dot products.
    pub bf16_ops: f64,
    /// Operations in `f32`.
    pub f32_ops: f64,
}

impl Work {
    /// The same if activations had one plane of 8 bits, as other engines have them.
    pub fn with_one_plane(self) -> Self {
        Self { int8_ops: self.int8_ops / ACTIVATION_PLANES, ..self }
    }
}

/// What counts of a model.
#[derive(Clone, Debug)]
pub struct ModelCost {
    prompts_in_bf16: bool,
    weights: StepWeights,
    attention: Vec<AttentionShape>,
}

/// Tokens that a pass adds to some sequences of equal length.
#[derive(Clone, Copy, Debug)]
pub struct PassShape {
    /// Sequences.
    pub sequences: usize,
    /// Tokens that each has already.
    pub start: usize,
    /// Tokens that each gets.
    pub tokens: usize,
    /// What they are computed for.
    pub phase: Phase,
    /// Whether the logits of each sequence's last token are wanted.
    pub logits: bool,
}

impl ModelCost {
    /// The cost of `model` on `isa`.
    pub fn of(model: &Model, isa: Isa) -> Self {
        let prompts_in_bf16 = isa.prefills_in_bf16();
        Self {
            prompts_in_bf16,
            weights: model.step_weights(),
            attention: model.attention_shapes().copied().collect(),
        }
    }

    /// What `passes` cost together.
    pub fn work(&self, passes: impl IntoIterator<Item = PassShape>) -> Work {
        let mut work = Work::default();
        for pass in passes {
            self.add_weights(&mut work, pass);
            for shape in &self.attention {
                add_attention(&mut work, shape, pass);
            }
        }
        work
    }

    fn add_weights(&self, work: &mut Work, pass: PassShape) {
        let StepWeights { layers, output } = self.weights;
        let mut part = |weights: WeightCount, rows: usize, in_bf16: bool| {
            let operations = |numbers: usize| 2.0 * (numbers * rows) as f64;
            work.bytes += weights.bytes as f64;
            work.f32_ops += operations(weights.floating);
            if in_bf16 {
                work.bf16_ops += operations(weights.quantized + weights.bf16);
            } else {
                work.int8_ops += ACTIVATION_PLANES * operations(weights.quantized);
                work.f32_ops += operations(weights.bf16);
            }
        };
        part(layers, pass.sequences * pass.tokens, self.prompts_in_bf16 && pass.phase == Phase::Prefill);
        if pass.logits {
            part(output, pass.sequences, false);
        }
    }
}

/// Adds what one layer's attention costs in `pass`.
pub(crate) fn add_attention(work: &mut Work, shape: &AttentionShape, pass: PassShape) {
    const BF16_BYTES: usize = 2;
    let dims = shape.tile.key_dim + shape.tile.value_dim;
    let (start, end) = (pass.start as u32, (pass.start + pass.tokens) as u32);
    let first_seen = shape.reach.range(start).0;
    let rows_read = pass.sequences * (end - first_seen) as usize;
    work.bytes += (rows_read * shape.kv_heads * dims * BF16_BYTES) as f64;
    let seen =
        (start..end).map(|position| f64::from(position + 1 - shape.reach.range(position).0)).sum::<f64>();
    work.bf16_ops += (2 * pass.sequences * shape.heads * dims) as f64 * seen;
}

#[cfg(test)]
mod tests {
    use kvik_kernels::attention::{Reach, TileShape};

    use super::*;

    fn cost(window: Option<u32>) -> ModelCost {
        let shape = AttentionShape {
            heads: 6,
            kv_heads: 2,
            tile: TileShape { key_dim: 8, value_dim: 4 },
            scale: 1.0,
            reach: Reach { causal: true, window },
        };
        let layers = WeightCount { bytes: 1000, quantized: 700, bf16: 0, floating: 50 };
        let output = WeightCount { bytes: 300, quantized: 0, bf16: 20, floating: 70 };
        ModelCost {
            prompts_in_bf16: false,
            weights: StepWeights { layers, output },
            attention: vec![shape; 3],
        }
    }

    #[test]
    fn a_decode_step_reads_all_weights_and_the_cache_it_sees() {
        let step = PassShape { sequences: 1, start: 99, tokens: 1, phase: Phase::Decode, logits: true };
        let work = cost(None).work([step]);
        assert_eq!(work.bytes, 1300.0 + (3 * 100 * 2 * 12 * 2) as f64);
        assert_eq!(work.int8_ops, 4.0 * 700.0);
        assert_eq!(work.f32_ops, 2.0 * 140.0);
        assert_eq!(work.bf16_ops, (3 * 6 * 100 * 2 * 12) as f64);
        let windowed = cost(Some(10)).work([step]);
        assert_eq!(windowed.bytes, 1300.0 + (3 * 10 * 2 * 12 * 2) as f64);
        assert_eq!(windowed.bf16_ops, (3 * 6 * 10 * 2 * 12) as f64);
    }

    #[test]
    fn a_batch_reads_the_weights_once_and_every_cache() {
        let one = cost(None).work([PassShape {
            sequences: 1,
            start: 99,
            tokens: 1,
            phase: Phase::Decode,
            logits: true,
        }]);
        let four = cost(None).work([PassShape {
            sequences: 4,
            start: 99,
            tokens: 1,
            phase: Phase::Decode,
            logits: true,
        }]);
        assert_eq!(four.bytes, 1300.0 + 4.0 * (one.bytes - 1300.0));
        assert_eq!(
            [four.int8_ops, four.bf16_ops, four.f32_ops],
            [one.int8_ops, one.bf16_ops, one.f32_ops].map(|x| 4.0 * x)
        );
    }

    #[test]
    fn attention_in_a_prefill_is_the_sum_over_its_tokens() {
        for window in [None, Some(1), Some(5), Some(100)] {
            let whole = cost(window).work([PassShape {
                sequences: 1,
                start: 0,
                tokens: 12,
                phase: Phase::Decode,
                logits: true,
            }]);
            let steps = (0..12).map(|start| PassShape {
                sequences: 1,
                start,
                tokens: 1,
                phase: Phase::Decode,
                logits: start == 11,
            });
            let stepwise = cost(window).work(steps);
            assert_eq!(whole.bf16_ops, stepwise.bf16_ops, "{window:?}");
            assert_eq!(whole.int8_ops, stepwise.int8_ops);
            assert!(whole.bytes < stepwise.bytes);
            assert_eq!(whole.with_one_plane().int8_ops, 2.0 * 12.0 * 700.0);
        }
    }

    #[test]
    fn a_prompt_is_multiplied_once_where_that_is_in_bf16() {
        let prompt = PassShape { sequences: 1, start: 0, tokens: 12, phase: Phase::Prefill, logits: true };
        let in_planes = cost(None).work([prompt]);
        let in_bf16 = ModelCost { prompts_in_bf16: true, ..cost(None) }.work([prompt]);
        assert_eq!(in_planes.int8_ops, 4.0 * 12.0 * 700.0);
        assert_eq!(in_bf16.int8_ops, 0.0);
        assert_eq!(in_bf16.bf16_ops, in_planes.bf16_ops + 2.0 * 12.0 * 700.0);
        assert_eq!(in_bf16.f32_ops, 2.0 * (12.0 * 50.0 + 90.0));
    }
}
