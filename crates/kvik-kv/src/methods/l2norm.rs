//! Key norms: tokens whose keys are short stay.
//!
//! Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024 (arXiv 2406.11430).
//!
//! In many models the keys that get much attention are short ones. When a prompt has been read, each head keeps the `budget`
//! rows with the smallest norm of the key, without a look at any query; the first `skip` layers, where norms say little, keep
//! everything. No attention is recomputed, and what is kept serves any question.

use crate::{
    CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind, select::top_rows,
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "l2norm",
    direction: Direction::Tokens,
    summary: "keeps the tokens with the shortest keys",
    paper: "Devoto et al., EMNLP 2024, arXiv 2406.11430",
    parameters: &[
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "1024",
            about: "rows that a head keeps of the prompt",
        },
        Parameter {
            name: "skip",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "2",
            about: "first layers that keep everything (the paper's choice)",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("l2norm.rs"),
    check: |_| None,
    build: |arguments, _| {
        Ok(Box::new(L2Norm { budget: arguments.count("budget"), skip: arguments.count("skip") }))
    },
};

#[derive(Clone)]
struct L2Norm {
    budget: usize,
    skip: usize,
}

impl Method for L2Norm {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            if layer < self.skip || rows <= self.budget {
                continue;
            }
            let keys = cache.keys(layer, kv_head, 0..rows);
            let norm = |key: &[f32]| key.iter().map(|k| k * k).sum::<f32>();
            let scores: Vec<f32> = keys.chunks(keys.len() / rows).map(|key| -norm(key)).collect();
            cache.retain(layer, kv_head, &top_rows(&scores, self.budget, |_| false))?;
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
