//! What a request may ask of the sampler, and which values make sense.

/// How the next token is chosen from the logits.
///
/// The defaults are llama.cpp's, so that the same command means the same thing in both.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Logits are divided by it before the draw; 0 takes the most likely token always (ties: the lowest id).
    pub temperature: f32,
    /// Only the `top_k` most likely tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens whose probabilities reach `top_p` stays; 1 keeps all
    /// (A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
    pub top_p: f32,
    /// Only tokens at least `min_p` times as likely as the most likely one stay; 0 keeps all
    /// (N. Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024).
    pub min_p: f32,
    /// Logits of tokens that occurred lately are divided by it if positive and multiplied if not; 1 changes nothing
    /// (N. Keskar et al., "CTRL", 2019, with llama.cpp's rule for negative logits).
    pub repeat_penalty: f32,
    /// How many tokens count as lately, those of the prompt included; 0 turns the penalty off.
    pub repeat_last_n: usize,
    /// The seed of the draws; `None` takes a fresh one.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: None,
        }
    }
}

/// A sampling option has a value that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum InvalidSampling {
    /// Negative, infinite or not a number.
    #[error("temperature {0} is out of range: use 0 for the most likely token always, or a positive number")]
    Temperature(f32),
    /// Outside `(0, 1]`.
    #[error("top-p {0} is out of range: use a number above 0 and up to 1 (1 turns it off)")]
    TopP(f32),
    /// Outside `[0, 1]`.
    #[error("min-p {0} is out of range: use a number from 0 to 1 (0 turns it off)")]
    MinP(f32),
    /// Not positive, infinite or not a number.
    #[error("repeat penalty {0} is out of range: use a positive number (1 turns it off, 1.1 is usual)")]
    RepeatPenalty(f32),
    /// Infinite or not a number.
    #[error("a frequency or presence penalty of {0} is out of range: use a number (0 turns it off)")]
    Penalty(f32),
    /// Of a token that the model does not have, or not a number.
    #[error("a logit bias of {bias} for token {id} means nothing: name tokens of the model, and numbers")]
    LogitBias {
        /// The token.
        id: u32,
        /// What is to be added.
        bias: f32,
    },
}

impl SamplingOptions {
    /// The most likely token always, no penalty.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks that every value means something.
    ///
    /// # Errors
    /// [`InvalidSampling`] names the first value that does not.
    pub fn validate(&self) -> Result<(), InvalidSampling> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(InvalidSampling::Temperature(self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(InvalidSampling::TopP(self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return Err(InvalidSampling::MinP(self.min_p));
        }
        if !(self.repeat_penalty.is_finite() && self.repeat_penalty > 0.0) {
            return Err(InvalidSampling::RepeatPenalty(self.repeat_penalty));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senseless_values_are_refused_by_name() {
        let good = SamplingOptions::default();
        assert_eq!(good.validate(), Ok(()));
        assert_eq!(SamplingOptions::greedy().validate(), Ok(()));
        for value in [-0.1, f32::INFINITY, f32::NAN] {
            let refused = |options: SamplingOptions| options.validate().unwrap_err().to_string();
            let starts = |sentence: String, name: &str| assert!(sentence.starts_with(name), "{sentence}");
            starts(refused(SamplingOptions { temperature: value, ..good.clone() }), "temperature");
            starts(refused(SamplingOptions { top_p: value, ..good.clone() }), "top-p");
            starts(refused(SamplingOptions { min_p: value, ..good.clone() }), "min-p");
            starts(refused(SamplingOptions { repeat_penalty: value, ..good.clone() }), "repeat penalty");
        }
        assert!(SamplingOptions { top_p: 0.0, ..good.clone() }.validate().is_err());
        assert!(SamplingOptions { repeat_penalty: 0.0, ..good.clone() }.validate().is_err());
        assert!(SamplingOptions { min_p: 1.0, top_p: 1.0, ..good }.validate().is_ok());
    }
}
