//! Random tokens: the baseline that says what any choice is worth.
//!
//! When a prompt has been read, each head keeps `budget` rows: the last `recent`, so that the text goes on, the first `sinks`,
//! and others drawn at random. The draw is counter-based, keyed by seed, layer, head and row, so that it does not depend on
//! threads or batches. Nothing is evicted while decoding.
//!
//! It has no paper: it is what a method that chooses tokens is compared with.

use crate::{
    CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind, draw::uniform,
    select::top_rows,
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "random",
    direction: Direction::Tokens,
    summary: "keeps tokens at random: the baseline",
    paper: "none",
    parameters: &[
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "1024",
            about: "rows that a head keeps of the prompt",
        },
        Parameter {
            name: "sinks",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "4",
            about: "first rows that stay, as in streaming",
        },
        Parameter {
            name: "recent",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "32",
            about: "last rows that stay, as snapkv's window does",
        },
        Parameter {
            name: "seed",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "0",
            about: "another seed keeps other rows",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("random.rs"),
    check: |arguments| {
        let (budget, sinks) = (arguments.count("budget"), arguments.count("sinks"));
        let recent = arguments.count("recent");
        (budget < sinks.saturating_add(recent)).then(|| {
            format!("random's budget of {budget} rows must hold its {sinks} sinks and {recent} recent rows")
        })
    },
    build: |arguments, _| {
        let count = |name| arguments.count(name);
        Ok(Box::new(Random {
            budget: count("budget"),
            sinks: count("sinks"),
            recent: count("recent"),
            seed: count("seed") as u64,
        }))
    },
};

#[derive(Clone)]
struct Random {
    budget: usize,
    sinks: usize,
    recent: usize,
    seed: u64,
}

impl Method for Random {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            if rows > self.budget {
                let draw = |row: usize| uniform(self.seed, &[layer as u64, kv_head as u64, row as u64]);
                let scores: Vec<f32> = (0..rows).map(draw).collect();
                let pinned = |row: usize| row < self.sinks || row + self.recent >= rows;
                cache.retain(layer, kv_head, &top_rows(&scores, self.budget, pinned))?;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
