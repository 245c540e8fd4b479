//! Placeholder page, replaced by the crate's own in the commits that follow.

#![deny(missing_docs)]
#![forbid(unsafe_code)]
