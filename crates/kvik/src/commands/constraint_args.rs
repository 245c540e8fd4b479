//! What the text must look like, as options.

use std::path::PathBuf;

use anyhow::Context;
use kvik_engine::ConstraintSource;

use super::input::read_file;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Form of the text")]
#[group(multiple = false)]
pub struct ConstraintArgs {
    /// JSON that follows the JSON schema in a file; `-` is standard input
    #[arg(long, value_name = "PATH")]
    json_schema: Option<PathBuf>,
    /// Any JSON object
    #[arg(long)]
    json_object: bool,
    /// A text of the grammar in a file, in llguidance's Lark syntax
    #[arg(long, value_name = "PATH")]
    grammar: Option<PathBuf>,
    /// A text that matches a regular expression, from its beginning to its end
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    regex: Option<String>,
    /// One of the texts that are given so
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    choice: Vec<String>,
}

impl ConstraintArgs {
    /// What the text must look like, if anything.
    pub fn source(&self) -> anyhow::Result<Option<ConstraintSource>> {
        if let Some(path) = &self.json_schema {
            let schema = serde_json::from_str(&read_file(path)?);
            let schema = schema.with_context(|| format!("{} is not valid JSON", path.display()))?;
            return Ok(Some(ConstraintSource::JsonSchema(schema)));
        }
        if let Some(path) = &self.grammar {
            return Ok(Some(ConstraintSource::Grammar(read_file(path)?)));
        }
        if let Some(regex) = &self.regex {
            return Ok(Some(ConstraintSource::Regex(regex.clone())));
        }
        if !self.choice.is_empty() {
            return Ok(Some(ConstraintSource::Choice(self.choice.clone())));
        }
        Ok(self.json_object.then_some(ConstraintSource::JsonObject))
    }
}
