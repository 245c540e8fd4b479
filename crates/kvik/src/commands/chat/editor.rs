//! Where a chat's lines come from: an editor with history on a terminal, plain lines from a pipe.
//!
//! A text may span lines: each that ends in `\` goes on in the next, and `"""` begins a text that ends with `"""`.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::Context as _;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Helper};

use super::slash::COMMANDS;

/// Three of these around a text let it span lines.
const FENCE: &str = "\"\"\"";
/// Lines that the history keeps.
const HISTORY_LINES: usize = 1000;

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a text.
    Text(String),
    /// Pressed Ctrl-C.
    Interrupt,
    /// Pressed Ctrl-D, or the pipe has ended.
    End,
}

/// A source of the user's texts.
pub enum Editor {
    Terminal { editor: Box<rustyline::Editor<ChatHelper, DefaultHistory>>, history: Option<PathBuf> },
    Pipe,
}

impl Editor {
    /// An editor on the terminal if there is one at both ends, with the lines of earlier chats from `history`.
    pub fn open(history: Option<PathBuf>) -> anyhow::Result<Editor> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(Editor::Pipe);
        }
        let config = Config::builder().max_history_size(HISTORY_LINES)?.auto_add_history(true).build();
        let mut editor = rustyline::Editor::with_config(config)?;
        editor.set_helper(Some(ChatHelper));
        if let Some(path) = &history {
            // Without a history the chat is as good; there is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Editor::Terminal { editor: Box::new(editor), history })
    }

    /// Whether a person sits at the other end.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Editor::Terminal { .. })
    }

    /// Waits for the next text.
    pub fn read(&mut self, colours: bool) -> anyhow::Result<Input> {
        match self {
            Editor::Terminal { editor, history } => {
                let styled = if colours { "\x1b[1;36m> \x1b[0m" } else { "> " };
                let line = match editor.readline(&("> ", styled)) {
                    Ok(line) => line,
                    Err(ReadlineError::Interrupted) => return Ok(Input::Interrupt),
                    Err(ReadlineError::Eof) => return Ok(Input::End),
                    Err(error) => return Err(error.into()),
                };
                if let Some(path) = history {
                    // As above: a full disk should not end a conversation.
                    let _ = path.parent().map(std::fs::create_dir_all);
                    let _ = editor.save_history(path);
                }
                Ok(Input::Text(unwrap(&line)))
            }
            Editor::Pipe => read_lines(&mut io::stdin().lock()),
        }
    }
}

/// Reads lines until they make up a text.
fn read_lines(lines: &mut impl BufRead) -> anyhow::Result<Input> {
    let mut text = String::new();
    loop {
        if lines.read_line(&mut text).context("cannot read standard input")? == 0 {
            return Ok(if text.is_empty() { Input::End } else { Input::Text(unwrap(&text)) });
        }
        if is_complete(text.trim_end_matches(['\n', '\r'])) {
            return Ok(Input::Text(unwrap(&text)));
        }
    }
}

/// Whether a text ends here, or goes on in the next line.
fn is_complete(text: &str) -> bool {
    match text.trim_start().strip_prefix(FENCE) {
        Some(rest) => rest.trim_end().ends_with(FENCE),
        None => !text.ends_with('\\'),
    }
}

/// A complete text without the marks that held its lines together.
fn unwrap(text: &str) -> String {
    let text = text.trim();
    match text.strip_prefix(FENCE) {
        Some(rest) => rest.strip_suffix(FENCE).unwrap_or(rest).trim_matches('\n').to_owned(),
        None => text.replace("\\\r\n", "\n").replace("\\\n", "\n"),
    }
}

/// Tells the editor when a text is complete, and completes commands.
pub struct ChatHelper;

impl Helper for ChatHelper {}
impl Highlighter for ChatHelper {}
impl Hinter for ChatHelper {
    type Hint = String;
}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(context.input());
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Completer for ChatHelper {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let fitting = COMMANDS.iter().filter(|(word, ..)| begun.starts_with('/') && word.starts_with(begun));
        Ok((0, fitting.map(|(word, ..)| word.to_string()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_make_up_texts() {
        let mut pipe: &[u8] = b"one\n\ntwo \\\nlines\n\"\"\"\na\n\n  b\\\n\"\"\"\n\"\"\"short\"\"\"\nlast";
        let mut next = || read_lines(&mut pipe).unwrap();
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(next(), text("one"));
        assert_eq!(next(), text(""));
        assert_eq!(next(), text("two \nlines"));
        assert_eq!(next(), text("a\n\n  b\\"));
        assert_eq!(next(), text("short"));
        assert_eq!(next(), text("last"));
        assert_eq!(next(), Input::End);
    }

    #[test]
    fn a_fence_that_is_never_closed_ends_with_the_pipe() {
        let mut pipe: &[u8] = b"\"\"\"a\nb\n";
        assert_eq!(read_lines(&mut pipe).unwrap(), Input::Text("a\nb".to_owned()));
        assert!(!is_complete("\"\"\"") && is_complete("\"\"\"\"\"\""));
    }
}
