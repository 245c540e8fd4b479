//! Sinks and a recent window: the first tokens and the last ones stay, the middle goes.
//!
//! Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024 (arXiv 2309.17453).
//!
//! Models put much attention on the first tokens whatever they are; without them a sliding window collapses. Each head keeps
//! the first `sinks` rows and as many of the last ones as fill the `budget`, after the prompt and again after every decoded
//! token. Keys keep their rotation and their positions; with `positions=slot`, as the authors do it, they turn as if the rows
//! that stayed followed each other, so that no distance exceeds the budget and a text may grow far beyond the context that the
//! model was trained for. It needs a model with rotary embeddings.
//!
//! It is the baseline that every method which chooses tokens has to beat at equal budget.

use crate::{
    CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind,
    positions::{POSITIONS, by_slot},
    sink_window::SinkWindow,
};

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
        POSITIONS,
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
    build: |arguments, shape| {
        let (budget, sinks) = (arguments.count("budget"), arguments.count("sinks"));
        let window = SinkWindow { sinks, recent: budget - sinks };
        Ok(Box::new(Streaming { window, by_slot: by_slot(arguments, shape)? }))
    },
};

#[derive(Clone)]
struct Streaming {
    window: SinkWindow,
    by_slot: bool,
}

impl Streaming {
    fn close_gaps(&self, cache: &mut OpenCache<'_>, layer: usize, kv_head: usize) {
        if self.by_slot {
            cache.close_gaps(layer, kv_head);
        }
    }
}

impl Method for Streaming {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            self.window.cut(cache, layer, kv_head)?;
            self.close_gaps(cache, layer, kv_head);
        }
        Ok(())
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            self.window.slide(cache, layer, kv_head)?;
            self.close_gaps(cache, layer, kv_head);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
