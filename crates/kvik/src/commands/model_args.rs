//! Which model a verb works on.

use std::path::PathBuf;

use kvik::models::DEFAULT;
use kvik_model::{Checkpoint, Tokenizer};

#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// A path, a known name (see `kvik pull --list`), or owner/name[:file] from the Hugging Face hub
    #[arg(long, short, default_value = DEFAULT, help_heading = "Model")]
    model: String,
}

impl ModelArgs {
    /// The model's path, fetched on first use.
    pub fn path(&self) -> anyhow::Result<PathBuf> {
        Ok(kvik::pull::ensure(&self.model)?)
    }

    /// The model's tokenizer, without its weights.
    pub fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        Ok(Tokenizer::from_checkpoint(&Checkpoint::open(&self.path()?)?)?)
    }
}
