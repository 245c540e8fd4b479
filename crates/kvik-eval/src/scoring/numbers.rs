//! Finding the number that an answer gives.

use std::sync::LazyLock;

use regex::Regex;

/// The pattern of SCBench's `get_score_one_math_find`.
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[0-9]+\.[0-9]+|[0-9]+").ok());
/// A number with a sign, thousands separators and decimals.
static WRITTEN_NUMBER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"-?[0-9][0-9,]*(?:\.[0-9]+)?").ok());

/// The first run of ASCII digits; empty when there is none.
pub fn first_integer(text: &str) -> &str {
    text.split(|c: char| !c.is_ascii_digit()).find(|run| !run.is_empty()).unwrap_or("")
}

/// The first number, with its decimals.
pub fn first_number(text: &str) -> Option<f64> {
    NUMBER.as_ref()?.find(text)?.as_str().parse().ok()
}

/// The number behind `####` if there is one, else the last number of the text; commas between digits are passed over.
pub fn final_number(text: &str) -> Option<f64> {
    let pattern = WRITTEN_NUMBER.as_ref()?;
    let found = match text.rsplit_once("####").and_then(|(_, behind)| pattern.find(behind)) {
        Some(found) => found,
        None => pattern.find_iter(text).last()?,
    };
    found.as_str().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_prose() {
        assert_eq!((first_integer("a12b34"), first_integer("x")), ("12", ""));
        assert_eq!((first_number("v1.50 or 2"), first_number("")), (Some(1.5), None));
        assert_eq!(final_number("2 and 3,000.5."), Some(3000.5));
        assert_eq!(final_number("#### 7 apples, of 9"), Some(7.0));
        assert_eq!(final_number("#### none"), None);
        assert_eq!(final_number("-12"), Some(-12.0));
        assert_eq!(final_number("5-3"), Some(-3.0));
    }
}
