//! What can go wrong with a trace, as sentences that say where and what to do.

use std::{io, path::PathBuf};

/// A trace cannot be read, fitted or generated.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what its format wants.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The format is not known.
    #[error(
        "{path} is in no format that is known: traces are Mooncake's JSON lines (timestamp, input_length, output_length, \
         hash_ids), Azure's CSV (TIMESTAMP,ContextTokens,GeneratedTokens) or BurstGPT's CSV (Timestamp,Model,Request \
         tokens,...), packed with zstd or not; this file begins with '{beginning}'"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its first characters.
        beginning: String,
    },
    /// The arrivals are too far apart.
    #[error(
        "{path}: its arrivals are {span_s:e} seconds apart, more than ten years; are its times in seconds?"
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Seconds from the first arrival to the last.
        span_s: f64,
    },
    /// There are no requests.
    #[error("{origin} has no requests{hint}")]
    Empty {
        /// The trace.
        origin: String,
        /// What may have removed them.
        hint: &'static str,
    },
    /// The rows count up like no log does.
    #[error(
        "{path} is not BurstGPT's log: its {rows} timestamps are the row numbers. A made-up file of that kind goes around \
         under the name BurstGPT_1.csv (the real one has 52,283,111 bytes); take the log from HPMLL/BurstGPT"
    )]
    Fabricated {
        /// The file.
        path: PathBuf,
        /// Its rows.
        rows: usize,
    },
    /// The model of a workload cannot be used.
    #[error("{origin} is no model of a workload that this version can use: {reason}")]
    Model {
        /// Where it comes from.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The trace is too small to learn from.
    #[error("{origin} has {requests} requests; a model of a workload is fitted to {needed} or more")]
    TooSmall {
        /// The trace.
        origin: String,
        /// Its requests.
        requests: usize,
        /// How many are needed.
        needed: usize,
    },
}
