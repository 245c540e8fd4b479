//! Whole numbers as the values of options, with a complaint that says what they may be.

use std::str::FromStr;

/// A number from 0 on.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "a whole number from 0 on is needed, and no huge one".to_owned())
}

/// A number from 1 on.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number from 1 on is needed".to_owned())
}
