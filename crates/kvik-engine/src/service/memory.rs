//! How much memory requests will need, so that no more are admitted than fit.
//!
//! A sequence without methods takes whole tiles of bf16 rows for its tokens: that is known. What it will generate is not, so
//! each counts with a number of tokens to come that rises when the guess was too low (a preemption) and falls slowly.
//! A sequence with methods needs most while it reads its prompt: those that wait for the end hold all of it until then, others
//! hold less. What a pipeline needed at most for prompts of similar length is remembered, and taken for all of the prompt until
//! it is known.

use kvik_kv::{KvShape, Pipeline};
use std::collections::HashMap;

/// Tokens that a running sequence is expected to generate next.
const LEAST_AHEAD: usize = 64;
const MOST_AHEAD: usize = 4096;
/// Steps without preemption after which one token less is expected.
const STEPS_A_TOKEN: usize = 8;
/// Pipelines and lengths that are remembered; clients choose them, so there may be any number.
const MOST_REMEMBERED: usize = 256;

/// What keys and values may take, and what they will.
pub(super) struct Budget {
    /// Bytes of RAM.
    pub(super) bytes: usize,
    step_tokens: usize,
    ahead: usize,
    calm_steps: usize,
    /// By pipeline and the logarithm of the prompt's length, the largest part of a prompt's bytes that was needed at once.
    peaks: HashMap<(String, u32), f64>,
}

/// What a sequence is, for the estimate of its memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) prompt_tokens: usize,
    /// Tokens that are known, those of the prompt included.
    pub(super) tokens: usize,
    /// Tokens that it may come to.
    pub(super) limit: usize,
}

impl Budget {
    pub(super) fn new(bytes: usize, step_tokens: usize) -> Self {
        Self { bytes, step_tokens, ahead: LEAST_AHEAD, calm_steps: 0, peaks: HashMap::new() }
    }

    /// Bytes of bf16 rows for so many tokens.
    pub(super) fn whole(&self, shape: &KvShape, tokens: usize) -> usize {
        shape.block_bytes(tokens, self.step_tokens)
    }

    /// Bytes that a sequence will take at its peak, as far as is foreseen.
    pub(super) fn expected(&self, shape: &KvShape, extent: Extent<'_>) -> usize {
        let Extent { pipeline, prompt_tokens, tokens, limit } = extent;
        let end = limit.min(tokens + self.ahead).max(prompt_tokens);
        let whole = |tokens| self.whole(shape, tokens);
        if pipeline.is_full() {
            return whole(end);
        }
        let seen = self.peaks.get(&key(pipeline, prompt_tokens));
        let peak = (whole(prompt_tokens) as f64 * seen.copied().unwrap_or(1.0)) as usize;
        peak + whole(end - prompt_tokens)
    }

    /// As [`Self::expected`], of a sequence that has `computed` tokens already, in `bytes` of RAM, but is not there.
    pub(super) fn expected_again(
        &self,
        shape: &KvShape,
        extent: Extent<'_>,
        computed: usize,
        bytes: usize,
    ) -> usize {
        if !extent.pipeline.is_full() && computed >= extent.prompt_tokens {
            return bytes + self.growth(shape, extent.pipeline, computed, self.ahead_of(extent));
        }
        self.expected(shape, extent).max(bytes)
    }

    /// Tokens that a sequence behind its prompt is expected to generate.
    fn ahead_of(&self, extent: Extent<'_>) -> usize {
        extent.limit.saturating_sub(extent.tokens).min(self.ahead)
    }

    /// Bytes by which a sequence of `tokens` tokens may grow when `new` more are computed.
    pub(super) fn growth(&self, shape: &KvShape, pipeline: &Pipeline, tokens: usize, new: usize) -> usize {
        let whole = |tokens| self.whole(shape, tokens);
        if pipeline.is_full() {
            whole(tokens + new) - whole(tokens)
        } else {
            // Where methods have rewritten rows, tiles begin anywhere.
            whole(new + kvik_kernels::attention::TILE_TOKENS - 1)
        }
    }

    /// A sequence has read a prompt and took `peak_bytes` at most meanwhile.
    pub(super) fn remember(
        &mut self,
        shape: &KvShape,
        pipeline: &Pipeline,
        prompt_tokens: usize,
        peak_bytes: usize,
    ) {
        if pipeline.is_full() {
            return;
        }
        if self.peaks.len() >= MOST_REMEMBERED {
            self.peaks.clear();
        }
        let share = peak_bytes as f64 / self.whole(shape, prompt_tokens) as f64;
        let seen = self.peaks.entry(key(pipeline, prompt_tokens)).or_default();
        *seen = seen.max(share);
    }

    /// A sequence had to give its memory away.
    pub(super) fn was_too_low(&mut self) {
        self.ahead = (2 * self.ahead).min(MOST_AHEAD);
        self.calm_steps = 0;
    }

    /// A step went well.
    pub(super) fn was_enough(&mut self) {
        self.calm_steps += 1;
        if self.calm_steps.is_multiple_of(STEPS_A_TOKEN) {
            self.ahead = (self.ahead - 1).max(LEAST_AHEAD);
        }
    }
}

/// Prompts of similar length: up to twice as long.
fn key(pipeline: &Pipeline, prompt_tokens: usize) -> (String, u32) {
    (pipeline.to_string(), prompt_tokens.ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvik_kv::LayerShape;

    fn shape() -> KvShape {
        KvShape::unrotated(vec![LayerShape { kv_heads: 2, key_dim: 32, value_dim: 32, window: None }; 3])
    }

    fn extent(pipeline: &Pipeline, prompt_tokens: usize) -> Extent<'_> {
        Extent { pipeline, prompt_tokens, tokens: prompt_tokens, limit: 10_000 }
    }

    #[test]
    fn a_plain_sequence_takes_whole_tiles_and_grows_by_them() {
        let (shape, full) = (shape(), Pipeline::full());
        let budget = Budget::new(1 << 30, 512);
        let tile = 3 * 2 * 64 * (32 + 32) * 2;
        assert_eq!(shape.block_bytes(64, 512), tile);
        assert_eq!(shape.block_bytes(65, 512), 2 * tile);
        assert_eq!(budget.expected(&shape, extent(&full, 100)), (100 + LEAST_AHEAD).div_ceil(64) * tile);
        let ends_soon = Extent { limit: 101, ..extent(&full, 100) };
        assert_eq!(budget.expected(&shape, ends_soon), 2 * tile);
        assert_eq!(budget.growth(&shape, &full, 64, 1), tile);
        assert_eq!(budget.growth(&shape, &full, 65, 63), 0);
    }

    #[test]
    fn a_sliding_window_bounds_what_its_layers_take() {
        let mut layers = shape();
        layers.layers[0].window = Some(128);
        let whole = shape().block_bytes(64 * 100, 64);
        let bounded = layers.block_bytes(64 * 100, 64);
        assert_eq!(whole - bounded, whole / 3 / 100 * (100 - 4));
    }

    #[test]
    fn what_a_pipeline_needed_is_expected_of_similar_prompts() {
        let shape = shape();
        let pipeline = Pipeline::parse("h2o(budget=64,cut=chunk)").unwrap();
        let mut budget = Budget::new(1 << 30, 512);
        let unknown = budget.expected(&shape, extent(&pipeline, 1024));
        assert!(unknown > shape.block_bytes(1024, 512));
        let peak = shape.block_bytes(256, 512);
        budget.remember(&shape, &pipeline, 1024, peak);
        budget.remember(&shape, &pipeline, 1024, peak / 2);
        let known = budget.expected(&shape, extent(&pipeline, 1024));
        assert_eq!(unknown - known, shape.block_bytes(1024, 512) - peak);
        assert!(budget.expected(&shape, extent(&pipeline, 4096)) > shape.block_bytes(4096, 512));
    }

    #[test]
    fn a_guess_that_was_too_low_rises_and_falls_slowly() {
        let (shape, full) = (shape(), Pipeline::full());
        let mut budget = Budget::new(1 << 30, 512);
        let calm = budget.expected(&shape, extent(&full, 64));
        (0..3).for_each(|_| budget.was_too_low());
        assert!(budget.expected(&shape, extent(&full, 64)) > 2 * calm);
        (0..STEPS_A_TOKEN * 8 * LEAST_AHEAD).for_each(|_| budget.was_enough());
        assert_eq!(budget.expected(&shape, extent(&full, 64)), calm);
    }
}
