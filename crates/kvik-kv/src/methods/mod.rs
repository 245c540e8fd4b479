//! Every method, one file each. A new one is a file here, its name in the first list and its `INFO` in the second.

pub mod duo;
pub mod h2o;
pub mod hadamard;
pub mod kivi;
pub mod l2norm;
pub mod minicache;
pub mod random;
pub mod shadowkv;
pub mod snapkv;
pub mod streaming;
pub mod tier;

use crate::{MethodInfo, pipeline::registry::Apart};

/// All methods, by name.
pub static METHODS: &[&MethodInfo] = &[
    &duo::INFO,
    &h2o::INFO,
    &hadamard::INFO,
    &kivi::INFO,
    &l2norm::INFO,
    &minicache::INFO,
    &random::INFO,
    &shadowkv::INFO,
    &snapkv::INFO,
    &streaming::INFO,
    &tier::INFO,
];

/// What some of them cannot stand beside, though directions alone would allow it.
pub static APART: &[Apart] = &[shadowkv::APART];
