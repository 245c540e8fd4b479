//! How good is a cache that keeps less? Tasks, their marks next to the full cache, and reports.
//!
//! A KV method is judged by what the model can still do with the memory that it leaves. An evaluation runs every item of
//! a task under the full cache and under each pipeline, on the same tokens: a context is prefilled, the method acts, and
//! then the model answers questions or is led through a text token by token, always through decode, where the method is
//! in force.
//!
//! The rooms, in the order in which an item passes them:
//!
//! - [`data`] finds texts and published test sets, [`words`] and [`haystack`] make material of them, [`draw`] chooses;
//! - [`prompt`] writes prompts as the model's chat template wants them, to the exact token;
//! - [`tasks`] turn all that into [`item`]s: a context, and questions or a continuation;
//! - [`subject`] is what is under test: a model whose sequences can be prefilled, forked, asked and led, under the full
//!   cache, under pipelines and under their [`baselines`];
//! - [`run`] brings the two together, [`scoring`] marks answers as the official programs do, and [`journal`] keeps what
//!   is done, so that a run that was cut off goes on;
//! - [`reproduce`] holds papers' claims to what it measures;
//! - [`statistics`] puts intervals around the means, and [`report`] writes tables, JSON and a page with plots.
//!
//! A server is judged by how long its users wait. Its rooms are beside these: [`trace`] has logs of real traffic and models
//! of it, [`client`] asks and measures, and [`load`] sends, on time, and reports.
//!
//! Everything is a function of the seed: the same command gives the same items on every machine.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod baselines;
pub mod client;
pub mod data;
pub mod draw;
mod error;
pub mod haystack;
pub mod item;
pub mod journal;
pub mod load;
pub mod prompt;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod scoring;
pub mod statistics;
pub mod subject;
pub mod tasks;
pub mod trace;
pub mod words;
mod zstandard;

pub use error::EvalError;
