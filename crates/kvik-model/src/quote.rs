//! Text from a file, fit for an error message.
//!
//! Names and values in a model file are whatever its author wrote: megabytes long, or full of terminal control
//! sequences. Messages quote them escaped and cut to a readable length.

use std::fmt;

const NAME_CHARS: usize = 80;
const MESSAGE_CHARS: usize = 400;

/// Displays text in quotation marks, escaped, at most 80 characters of it.
pub(crate) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(NAME_CHARS) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", self.0.split_at(end).0),
        }
    }
}

/// A parser's message, which may repeat any amount of its input, on one line of at most 400 characters.
pub(crate) fn one_line(message: &str) -> String {
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    let mut line: String = message.chars().take(MESSAGE_CHARS).map(printable).collect();
    if message.chars().nth(MESSAGE_CHARS).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_and_control_characters_are_escaped() {
        assert_eq!(Quoted("a\u{1b}[2J\"").to_string(), r#""a\u{1b}[2J\"""#);
        let shown = Quoted(&"é".repeat(1000)).to_string();
        assert_eq!(shown, format!("\"{}\"…", "é".repeat(80)));
        assert_eq!(one_line("expected `é`\n\u{1b}[2J"), "expected `é`  [2J");
        assert_eq!(one_line(&"é".repeat(1000)), format!("{}…", "é".repeat(400)));
    }
}
