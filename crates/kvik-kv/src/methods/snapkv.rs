//! SnapKV: the last tokens of a prompt say which of the others matter.
//!
//! Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024 (arXiv 2404.14469).
//!
//! When a prompt has been read, the attention of its last `window` queries over all keys is summed up for each key, averaged
//! over the query heads that share a KV head, and pooled along the positions, so that neighbours of a token that matters stay
//! with it. Each head keeps the `budget - window` rows with the highest scores and the window itself; keys keep their
//! rotation, and new tokens keep counting from the full length. Nothing is evicted while decoding.
//!
//! It works best when the question stands at the end of the prompt, and what it keeps is good for that question only: the
//! cache is no shared prefix. Later prompts of a conversation are kept whole unless `turns=all`. The reading of the prompt is
//! neither faster nor smaller by it.

use kvik_kernels::attention::ColumnSums;

use crate::{
    Arguments, CacheError, Direction, Evidence, Method, MethodInfo, OpenCache, Parameter, ParameterKind,
    budget::{ALLOCATORS, Allocator, allocator},
    select::top_rows,
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "snapkv",
    direction: Direction::Tokens,
    summary: "keeps the tokens that the end of the prompt attends to",
    paper: "Li et al., NeurIPS 2024, arXiv 2404.14469",
    parameters: &[
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "2048",
            about: "rows that a head keeps of the prompt, the window included (the official code's default for models)",
        },
        Parameter {
            name: "window",
            kind: ParameterKind::Count { min: 1, max: 1024 },
            default: "32",
            about: "queries at the end of the prompt that choose, all of which stay (official default)",
        },
        Parameter {
            name: "kernel",
            kind: ParameterKind::Count { min: 1, max: 127 },
            default: "5",
            about: "positions that are pooled together, an odd number (official default; LongBench runs used 7)",
        },
        Parameter {
            name: "pooling",
            kind: ParameterKind::Choice(&["avg", "max"]),
            default: "avg",
            about: "how scores are pooled (official default; LongBench runs used max)",
        },
        Parameter {
            name: "heads",
            kind: ParameterKind::Choice(&["mean", "max"]),
            default: "mean",
            about: "how the query heads of a KV head are joined, before pooling",
        },
        Parameter {
            name: "allocator",
            kind: ALLOCATORS,
            default: "uniform",
            about: "how the budget is spread over layers",
        },
        Parameter {
            name: "turns",
            kind: ParameterKind::Choice(&["first", "all"]),
            default: "first",
            about: "compress after the first prompt of a conversation only, or after every one",
        },
    ],
    query_free: false,
    calibration: None,
    source: include_str!("snapkv.rs"),
    check: |arguments| {
        let (budget, window) = (arguments.count("budget"), arguments.count("window"));
        if budget <= window {
            return Some(format!(
                "snapkv's budget of {budget} rows must be larger than its window of {window}, which always stays"
            ));
        }
        let kernel = arguments.count("kernel");
        (kernel % 2 == 0)
            .then(|| format!("snapkv's kernel must be odd, so that it has a middle, not {kernel}"))
    },
    build: |arguments, _| Ok(Box::new(SnapKv::new(arguments))),
};

#[derive(Clone)]
struct SnapKv {
    budget: usize,
    window: usize,
    kernel: usize,
    max_pooling: bool,
    max_heads: bool,
    every_turn: bool,
    allocator: String,
}

impl SnapKv {
    fn new(arguments: &Arguments) -> Self {
        Self {
            budget: arguments.count("budget"),
            window: arguments.count("window"),
            kernel: arguments.count("kernel"),
            max_pooling: arguments.text("pooling") == "max",
            max_heads: arguments.text("heads") == "max",
            every_turn: arguments.text("turns") == "all",
            allocator: arguments.text("allocator").to_owned(),
        }
    }

    fn allocator(&self) -> Box<dyn Allocator> {
        allocator(&self.allocator)
    }

    /// The pooled score of every row of a layer's heads, the window's rows at the end left at zero.
    fn scores(&self, cache: &OpenCache<'_>, layer: usize) -> Vec<Vec<f32>> {
        let each = if self.max_heads { ColumnSums::EachHead } else { ColumnSums::Group };
        let sums = cache.window_sums(layer, self.window, each);
        let kv_heads = cache.layer(layer).kv_heads;
        let group = (sums.len() / kv_heads).max(1);
        let joined = sums.chunks(group).map(|heads| {
            let mut joined = heads[0].clone();
            for head in &heads[1..] {
                joined.iter_mut().zip(head).for_each(|(a, &b)| *a = a.max(b));
            }
            joined
        });
        let pooled = joined.map(|mut scores| {
            let prefix = scores.len().saturating_sub(self.window);
            let pooled = pool(&scores[..prefix], self.kernel, self.max_pooling);
            scores[..prefix].copy_from_slice(&pooled);
            scores[prefix..].fill(0.0);
            scores
        });
        pooled.collect()
    }
}

impl Method for SnapKv {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn evidence(&self) -> Evidence {
        Evidence { window: self.window, ..Evidence::NONE }
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, turn: usize) -> Result<(), CacheError> {
        if turn > 0 && !self.every_turn {
            return Ok(());
        }
        let layers: Vec<usize> = cache.shape().full_layers().collect();
        // A prompt that is shorter than the budget stays whole; so does one that is too short to say anything.
        if cache.new_tokens() < self.budget || cache.new_tokens() <= self.window {
            return Ok(());
        }
        let scores: Vec<Vec<Vec<f32>>> = layers.iter().map(|&layer| self.scores(cache, layer)).collect();
        let budgets = self.allocator().rows(self.budget, self.window + 1, &scores);
        for ((&layer, scores), budgets) in layers.iter().zip(&scores).zip(budgets) {
            for (kv_head, (scores, budget)) in scores.iter().zip(budgets).enumerate() {
                let window_from = scores.len().saturating_sub(self.window);
                let keep = top_rows(scores, budget, |row| row >= window_from);
                cache.retain(layer, kv_head, &keep)?;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

/// Pools over `kernel` neighbours. Beyond the ends averages count zeros, as in the official code, so that edges are damped.
fn pool(scores: &[f32], kernel: usize, max: bool) -> Vec<f32> {
    let half = kernel / 2;
    let pooled = |row: usize| {
        let near = &scores[row.saturating_sub(half)..(row + half + 1).min(scores.len())];
        if max {
            near.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        } else {
            near.iter().sum::<f32>() / kernel as f32
        }
    };
    (0..scores.len()).map(pooled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_damps_the_edges_of_averages_and_not_of_maxima() {
        let scores = [4.0, 0.0, 2.0, 8.0];
        assert_eq!(pool(&scores, 3, false), [4.0 / 3.0, 2.0, 10.0 / 3.0, 10.0 / 3.0]);
        assert_eq!(pool(&scores, 3, true), [4.0, 4.0, 8.0, 8.0]);
        assert_eq!(pool(&scores, 1, false), scores);
    }
}
