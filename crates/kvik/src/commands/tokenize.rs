//! `kvik tokenize`: text to tokens and back, without loading any weights.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use kvik_model::tokenizer::EncodeOptions;
use serde_json::json;

use super::input::{parse_ids, read_text};
use super::model_args::ModelArgs;

/// Show how a model's tokenizer cuts a text
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text; `-`, or no text at all, reads standard input
    text: Option<String>,
    /// Read the text from a file
    #[arg(long, short, value_name = "PATH", conflicts_with_all = ["text", "decode"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Leave out the tokens that the model wants around a text, such as BOS
    #[arg(long)]
    no_special: bool,
    /// Read special tokens that are written out in the text, such as <|im_end|>, as such
    #[arg(long)]
    parse_special: bool,
    /// Print the ids only, in one line
    #[arg(long)]
    ids_only: bool,
    /// One JSON object with "ids" and "pieces"; with --ids-only an array
    #[arg(long)]
    json: bool,
    /// Print the text of these tokens instead: "1 2 3" or "[1, 2, 3]"
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "no_special", "parse_special", "ids_only", "json"])]
    #[arg(allow_negative_numbers = true)]
    decode: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  kvik tokenize \"Why is the sky blue?\"
  kvik tokenize --file book.txt --ids-only > book.ids
  kvik tokenize --decode \"504 6376 314 4461 30\"";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if let Some(ids) = &args.decode {
        let (ids, tokenizer) = (parse_ids(ids)?, args.model.tokenizer()?);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_len()) {
            bail!(
                "token {id} is not in the vocabulary: ids go from 0 to {}",
                tokenizer.vocab_len().saturating_sub(1)
            );
        }
        writeln!(out, "{}", tokenizer.decode(&ids, true))?;
        return Ok(out.flush()?);
    }
    let text = read_text(args.text.as_deref(), args.file.as_deref())?;
    let tokenizer = args.model.tokenizer()?;
    let options = EncodeOptions { add_special: !args.no_special, parse_special: args.parse_special };
    let ids = tokenizer.encode(&text, options)?;
    match (args.json, args.ids_only) {
        (true, true) => writeln!(out, "{}", json!(ids))?,
        (true, false) => {
            let pieces: Vec<_> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
            writeln!(out, "{}", json!({"ids": ids, "pieces": pieces}))?;
        }
        (false, true) => {
            let words: Vec<String> = ids.iter().map(ToString::to_string).collect();
            writeln!(out, "{}", words.join(" "))?;
        }
        (false, false) => {
            for &id in &ids {
                // A character may be spread over tokens; such a piece shows its bytes.
                match std::str::from_utf8(&tokenizer.token_bytes(id)) {
                    Ok(piece) => writeln!(out, "{id:>7}  {piece:?}")?,
                    Err(_) => writeln!(out, "{id:>7}  \"{}\"", tokenizer.token_bytes(id).escape_ascii())?,
                }
            }
        }
    }
    Ok(out.flush()?)
}
