//! One file for each calibration.

pub mod duo;
