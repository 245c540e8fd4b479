//! Where a text comes from: the command line, a file, or standard input.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};

/// The text given as an argument or in a file; `-` for either, or neither, is standard input.
pub fn read_text(argument: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    match (argument, file) {
        (Some("-"), _) => read_stdin(),
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some(path)) => read_file(path),
        (None, None) if io::stdin().is_terminal() => {
            bail!("there is no text: give it as an argument, with --file PATH, or through standard input")
        }
        (None, None) => read_stdin(),
    }
}

/// The text in a file; `-` is standard input.
pub fn read_file(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return read_stdin();
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    as_text(bytes, &path.display().to_string())
}

fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    as_text(bytes, "standard input")
}

fn as_text(bytes: Vec<u8>, source: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        anyhow::anyhow!("{source} is not UTF-8 text: byte {valid} (counted from 0) begins no character")
    })
}

/// Token ids written as a JSON array, or as numbers with spaces or commas between them.
pub fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).context("this is no JSON array of token ids");
    }
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    words
        .map(|word| word.parse().with_context(|| format!("'{}' is no token id", word.escape_debug())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse_ids;

    #[test]
    fn ids_come_as_json_or_as_words() {
        for text in ["[1, 2,3]", "1 2\n3", " 1,2, 3 "] {
            assert_eq!(parse_ids(text).unwrap(), [1, 2, 3], "{text}");
        }
        assert_eq!(parse_ids("[]").unwrap(), [0; 0]);
        for text in ["1 x", "-1", "4294967296", "1.5"] {
            assert!(parse_ids(text).unwrap_err().to_string().contains("is no token id"), "{text}");
        }
        assert!(parse_ids("[1, 2").is_err() && parse_ids("[[1]]").is_err() && parse_ids("[1] 2").is_err());
    }
}
