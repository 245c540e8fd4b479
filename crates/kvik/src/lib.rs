//! Kvik's front door: which models have names, how a name becomes files on this machine, and the command line.
//!
//! The `kvik` binary is a `match` over what the user asked for; each verb is one file under `commands/`. What a
//! test, an evaluation or another program needs of it stands here as a library: [`models`] says what a name means
//! and [`pull::ensure`] turns it into a path, fetching the files on first use.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod bench;
pub mod cache;
pub mod microscope;
pub mod models;
pub mod pull;
