//! H2O: a constant number of tokens, the most recent ones and those that have got the most attention so far.
//!
//! Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", NeurIPS 2023
//! (arXiv 2306.14048).
//!
//! Each row adds up the attention that it gets from every query, those of the prompt and those of decoded tokens, over the query
//! heads that share its KV head. When a prompt has been read, each head keeps the `recent` share of its budget for the last
//! tokens, and fills the rest with the rows that have the largest sums. After every decoded token the row with the smallest sum
//! goes, unless it is recent, so that the cache never grows. `ratio=0.2` makes the budget a share of the first prompt, as the
//! paper's 20 % is; until that prompt is read, nothing goes.
//!
//! With `positions=slot` rows turn as if they followed each other, so that no distance exceeds the budget, which texts beyond the
//! trained context need. With `cut=chunk` the rows are cut after every chunk of a prompt already: reading then takes constant
//! memory as well, but tokens that only later parts of the prompt would have looked at may be gone by then.
//!
//! Sums favour old tokens, which more queries have seen; `score=mean` divides by the number of those queries, which is not the
//! paper's. The sums cost a second pass over the keys while a prompt is read. An evicted token never comes back, also for a later
//! question. The authors' code for grouped queries fails; here the heads of a group are summed.

use crate::{
    Arguments, CacheError, Direction, Evidence, KvShape, Method, MethodInfo, OpenCache, Parameter,
    ParameterKind,
    positions::{POSITIONS, by_slot},
    select::top_rows,
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "h2o",
    direction: Direction::Tokens,
    summary: "keeps the tokens with the most attention so far and the most recent ones, while decoding too",
    paper: "Zhang et al., NeurIPS 2023, arXiv 2306.14048",
    parameters: &[
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "1024",
            about: "rows that a head keeps",
        },
        Parameter {
            name: "ratio",
            kind: ParameterKind::Number { min: 0.0, max: 1.0 },
            default: "0",
            about: "share of the first prompt that the budget is instead, unless 0 (the paper's experiments: 0.2)",
        },
        Parameter {
            name: "recent",
            kind: ParameterKind::Number { min: 0.0, max: 1.0 },
            default: "0.5",
            about: "share of the budget for the last tokens (the paper's default: half)",
        },
        Parameter {
            name: "score",
            kind: ParameterKind::Choice(&["sum", "mean"]),
            default: "sum",
            about: "attention so far, summed over the queries (the paper's) or divided by their number",
        },
        POSITIONS,
        Parameter {
            name: "cut",
            kind: ParameterKind::Choice(&["prompt", "chunk"]),
            default: "prompt",
            about: "when rows of a prompt are dropped: at its end (the paper's) or after each chunk of it",
        },
    ],
    query_free: false,
    calibration: None,
    source: include_str!("h2o.rs"),
    check: |arguments| {
        (arguments.number("ratio") > 0.0 && arguments.text("cut") == "chunk").then(|| {
            "h2o's ratio is of the whole prompt, whose length is not known at its first chunk: use budget with cut=chunk"
                .to_owned()
        })
    },
    build: |arguments, shape| Ok(Box::new(H2o::new(arguments, shape)?)),
};

#[derive(Clone)]
struct H2o {
    budget: usize,
    /// The budget as a share of the first prompt.
    ratio: Option<f64>,
    /// Tokens of the first prompt, once it was read.
    prompt_tokens: Option<usize>,
    recent: f64,
    mean: bool,
    by_slot: bool,
    by_chunk: bool,
}

impl H2o {
    fn new(arguments: &Arguments, shape: &KvShape) -> Result<Self, String> {
        Ok(Self {
            budget: arguments.count("budget"),
            ratio: Some(arguments.number("ratio")).filter(|&ratio| ratio > 0.0),
            prompt_tokens: None,
            recent: arguments.number("recent"),
            mean: arguments.text("score") == "mean",
            by_slot: by_slot(arguments, shape)?,
            by_chunk: arguments.text("cut") == "chunk",
        })
    }

    /// Rows that a head keeps.
    fn budget(&self) -> usize {
        match (self.ratio, self.prompt_tokens) {
            (None, _) => self.budget,
            (Some(_), None) => usize::MAX,
            (Some(ratio), Some(tokens)) => ((ratio * tokens as f64).round() as usize).max(1),
        }
    }

    /// Cuts every head to its budget.
    fn cut(&self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let budget = self.budget();
        let recent = (self.recent * budget as f64).round() as usize;
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            if rows <= budget {
                continue;
            }
            let positions = cache.positions(layer, kv_head);
            let scores = self.scores(cache, layer, kv_head, &positions);
            let is_recent = |row: usize| positions[row] as usize + recent >= cache.tokens();
            if rows == budget + 1 {
                let row = lowest(&scores, &positions, is_recent);
                cache.evict(layer, kv_head, row)?;
            } else {
                let keep = top_rows(&scores, budget, is_recent);
                cache.retain(layer, kv_head, &keep)?;
            }
            if self.by_slot {
                cache.close_gaps(layer, kv_head);
            }
        }
        Ok(())
    }

    fn scores(&self, cache: &OpenCache<'_>, layer: usize, kv_head: usize, positions: &[u32]) -> Vec<f32> {
        let sums = &cache.statistics(layer, kv_head).accumulated;
        if !self.mean {
            return sums.clone();
        }
        // Every query since its own has seen a row.
        let queries = |position: u32| (cache.tokens() - position as usize) as f32;
        sums.iter().zip(positions).map(|(sum, &position)| sum / queries(position)).collect()
    }
}

/// The row with the smallest score among those that are not recent; of equal ones the youngest.
fn lowest(scores: &[f32], positions: &[u32], is_recent: impl Fn(usize) -> bool) -> usize {
    let rows = (0..scores.len()).filter(|&row| !is_recent(row));
    rows.min_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(positions[b].cmp(&positions[a])))
        .expect("recent rows fit the budget")
}

impl Method for H2o {
    fn evidence(&self) -> Evidence {
        Evidence { accumulated: true, ..Evidence::NONE }
    }

    fn after_chunk(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        if self.by_chunk { self.cut(cache) } else { Ok(()) }
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.prompt_tokens.get_or_insert(cache.new_tokens());
        self.cut(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.cut(cache)
    }

    fn truncated(&mut self, len: usize) {
        if len == 0 {
            self.prompt_tokens = None;
        }
    }

    fn save(&self, state: &mut Vec<u8>) -> Result<(), &'static str> {
        state.extend(self.prompt_tokens.iter().flat_map(|&tokens| (tokens as u64).to_le_bytes()));
        Ok(())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.prompt_tokens = match state {
            [] => None,
            tokens => {
                let tokens = tokens.try_into().map_err(|_| "a number of tokens has 8 bytes")?;
                Some(u64::from_le_bytes(tokens) as usize)
            }
        };
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
