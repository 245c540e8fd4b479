//! Numbers as the values of options, with a complaint that says what they may be.

use std::str::FromStr;

/// A number from 0 on.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "a whole number from 0 on is needed, and no huge one".to_owned())
}

/// A number from 1 on.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "a whole number from 1 on is needed".to_owned())
}

/// A number above 0.
pub fn above_zero(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| (1e-6..=1e9).contains(number));
    number.ok_or_else(|| "a number above 0 is needed, from a millionth to a thousand million".to_owned())
}

/// A share above 0, up to all.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share) && *share > 0.0);
    share.ok_or_else(|| "a share above 0 and up to 1 is needed".to_owned())
}
