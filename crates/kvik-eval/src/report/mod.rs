//! What an evaluation says: a table in the terminal, one JSON object, or a page with plots.
//!
//! [`Report`] holds the numbers of an evaluation, and [`LoadReport`](crate::load::LoadReport) those of a load; the other
//! rooms only show them. Its fields are what `--json` writes.

mod bars;
mod charts;
mod heat_map;
mod html;
mod load;
mod summary;
mod svg;
mod table;

use serde::Serialize;

use crate::statistics::Estimate;

/// The numbers of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// The seed of the items and the intervals.
    pub seed: u64,
    /// Where first questions stood: `with-context` or `after`.
    pub question: String,
    /// True if all items were run.
    pub finished: bool,
    /// The variants, the full cache first.
    pub variants: Vec<String>,
    /// Remarks about the run.
    pub notes: Vec<String>,
    /// Task by task.
    pub tasks: Vec<TaskReport>,
}

/// The numbers of one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskReport {
    /// The task.
    pub task: String,
    /// One line about it.
    pub about: String,
    /// What its scores are.
    pub metric: String,
    /// True if a higher score is better.
    pub more_is_better: bool,
    /// Items that all variants did.
    pub items: usize,
    /// Variant by variant.
    pub rows: Vec<Row>,
    /// The score of random answers, where that is a useful level.
    pub chance: Option<Estimate>,
    /// The scores told apart by a property.
    pub breakdowns: Vec<Breakdown>,
    /// Scores over lengths and depths, where needles have depths on a grid.
    pub grid: Option<Grid>,
    /// The divergence from the full cache, where it is what the task measures.
    pub divergence: Vec<Divergence>,
}

/// One variant in one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The pipeline.
    pub kv: String,
    /// The score with its 95 % interval.
    pub score: Estimate,
    /// How far the score lies above the full cache's on the same items.
    pub difference: Option<Estimate>,
    /// Bytes of RAM of keys and values after the prompt, from the allocator, mean over items.
    pub kv_bytes: f64,
    /// Bytes of files that they take, mean over items.
    pub kv_file_bytes: f64,
    /// These as a share of the full cache's.
    pub kv_share: f64,
    /// Prompt tokens per second, the method's work included.
    pub prefill_tokens_per_second: f64,
    /// Milliseconds per decoded token; `None` when nothing was decoded.
    pub decode_ms_per_token: Option<f64>,
}

/// Scores told apart by a property.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown {
    /// The property.
    pub by: String,
    /// Its values, in order.
    pub values: Vec<String>,
    /// `[variant][value]`.
    pub scores: Vec<Vec<Option<Estimate>>>,
}

/// Scores over lengths and depths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grid {
    /// Tokens of the prompts.
    pub lengths: Vec<usize>,
    /// Depths of the needles, from 0 to 1.
    pub depths: Vec<f64>,
    /// `[variant][depth][length]`.
    pub scores: Vec<Vec<Vec<Option<f64>>>>,
}

/// The divergence of one variant from the full cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// The pipeline.
    pub kv: String,
    /// Positions that were compared.
    pub positions: usize,
    /// Percentiles of the divergence over positions, in nats.
    pub percentiles: Percentiles,
    /// Share of positions at which the most likely token is the full cache's.
    pub top1_agreement: f64,
    /// Mean divergence by position behind the prompt, in nats.
    pub by_position: Vec<f64>,
}

/// Percentiles over positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten positions lie below.
    pub p90: f64,
    /// All but one in a hundred lie below.
    pub p99: f64,
    /// The worst position.
    pub max: f64,
}
