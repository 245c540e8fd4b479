//! Text from a file, fit for an error message.
//!
//! Names and values in a model file are whatever its author wrote: megabytes long, or full of terminal control
//! sequences. Messages quote them escaped and cut to a readable length.

use std::fmt;

const SHOWN_CHARS: usize = 80;

/// Displays text in quotation marks, escaped, at most 80 characters of it.
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN_CHARS) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", self.0.split_at(end).0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_and_control_characters_are_escaped() {
        assert_eq!(Quoted("a\u{1b}[2J\"").to_string(), r#""a\u{1b}[2J\"""#);
        let shown = Quoted(&"é".repeat(1000)).to_string();
        assert_eq!(shown, format!("\"{}\"…", "é".repeat(80)));
    }
}
