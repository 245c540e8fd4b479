//! Sinks and a recent window: the first tokens and the last ones stay, the middle goes.
//!
//! Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024 (arXiv 2309.17453).
//!
//! Models put much attention on the first tokens whatever they are; without them a sliding window collapses. Each head keeps
//! the first `sinks` rows and as many of the last ones as fill the `budget`, after the prompt and again after every decoded
//! token. Keys keep their rotation and their positions.
//!
//! It is the baseline that every method which chooses tokens has to beat at equal budget.

use crate::{CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "streaming",
    direction: Direction::Tokens,
    summary: "keeps the first tokens and the most recent ones",
    paper: "Xiao et al., ICLR 2024, arXiv 2309.17453",
    parameters: &[
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "1024",
            about: "rows that a head keeps, sinks included",
        },
        Parameter {
            name: "sinks",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "4",
            about: "first rows that stay (the paper's default)",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("streaming.rs"),
    check: |arguments| {
        let (budget, sinks) = (arguments.count("budget"), arguments.count("sinks"));
        (budget <= sinks).then(|| {
            format!(
                "streaming's budget of {budget} rows must be larger than its {sinks} sinks, which always stay"
            )
        })
    },
    build: |arguments, _| {
        Ok(Box::new(Streaming { budget: arguments.count("budget"), sinks: arguments.count("sinks") }))
    },
};

#[derive(Clone)]
struct Streaming {
    budget: usize,
    sinks: usize,
}

impl Streaming {
    fn cut(&self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            if rows > self.budget {
                let recent = rows - (self.budget - self.sinks);
                let keep: Vec<u32> = (0..self.sinks as u32).chain(recent as u32..rows as u32).collect();
                cache.retain(layer, kv_head, &keep)?;
            }
        }
        Ok(())
    }
}

impl Method for Streaming {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.cut(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        // The oldest row that is no sink goes; the newest takes its place.
        for (layer, kv_head) in cache.heads() {
            while cache.rows(layer, kv_head) > self.budget {
                let oldest = cache.oldest(layer, kv_head, self.sinks);
                cache.evict(layer, kv_head, oldest)?;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
