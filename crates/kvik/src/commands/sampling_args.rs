//! How the next token is chosen, as options.

use kvik_engine::SamplingOptions;

use super::numbers::{at_least_one, whole};

/// Where a plain continuation ends by itself: a base model rarely ends its text.
pub const COMPLETION_TOKENS: usize = 256;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Stop after so many tokens [default: when the model ends its answer; 256 where it continues a text]
    #[arg(long, short = 'n', value_name = "N", value_parser = at_least_one)]
    #[arg(allow_negative_numbers = true)]
    pub max_tokens: Option<usize>,
    /// 0 takes the most likely token always; higher is more surprising
    #[arg(long, value_name = "T", default_value_t = SamplingOptions::default().temperature)]
    #[arg(allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K most likely tokens only; 0 turns it off
    #[arg(long, value_name = "K", default_value_t = SamplingOptions::default().top_k)]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    top_k: usize,
    /// Draw from the most likely tokens that make up P of the probability; 1 turns it off
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().top_p)]
    #[arg(allow_negative_numbers = true)]
    top_p: f32,
    /// Draw from tokens at least P times as likely as the most likely one; 0 turns it off
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().min_p)]
    #[arg(allow_negative_numbers = true)]
    min_p: f32,
    /// Make tokens that occurred lately less likely; 1 turns it off
    #[arg(long, value_name = "R", default_value_t = SamplingOptions::default().repeat_penalty)]
    #[arg(allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// The same seed gives the same text [default: a fresh one]
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// End the text before STRING; may be given several times
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    pub stop: Vec<String>,
}

impl SamplingArgs {
    /// The options, checked before any model is loaded for them.
    pub fn options(&self) -> anyhow::Result<SamplingOptions> {
        let options = SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            ..SamplingOptions::default()
        };
        options.validate()?;
        Ok(options)
    }
}
