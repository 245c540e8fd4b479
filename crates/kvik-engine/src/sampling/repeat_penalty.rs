//! The repeat penalty: what was said lately becomes less likely.
//!
//! N. Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation" (2019), divides the
//! logits of tokens that occurred before. llama.cpp multiplies the logits that are not positive instead, since
//! dividing those would make a repetition more likely; that is the definition here. A token is penalised once,
//! however often it occurred.

/// Holds the penalised copy of the logits, so that the model's own stay as they are.
pub(super) struct RepeatPenalty {
    penalty: f32,
    last_n: usize,
    penalised: Vec<f32>,
}

impl RepeatPenalty {
    /// A penalty over the last `last_n` tokens, for `vocab_size` logits.
    pub(super) fn new(penalty: f32, last_n: usize, vocab_size: usize) -> Self {
        let changes = penalty != 1.0 && last_n > 0;
        let last_n = if changes { last_n } else { 0 };
        Self { penalty, last_n, penalised: Vec::with_capacity(if changes { vocab_size } else { 0 }) }
    }

    /// The logits `[vocab]` to choose from after `history`: the given ones, or a penalised copy.
    pub(super) fn apply<'a>(&'a mut self, logits: &'a [f32], history: &[u32]) -> &'a [f32] {
        if self.last_n == 0 {
            return logits;
        }
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        for &id in &history[history.len().saturating_sub(self.last_n)..] {
            // Always from the given logit: a token that occurs twice is penalised once.
            if let Some(&logit) = logits.get(id as usize) {
                self.penalised[id as usize] =
                    if logit > 0.0 { logit / self.penalty } else { logit * self.penalty };
            }
        }
        &self.penalised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_tokens_are_penalised_once() {
        let logits = [4.0, -4.0, 0.0, 4.0, 4.0];
        let mut penalty = RepeatPenalty::new(2.0, 4, logits.len());
        assert_eq!(penalty.apply(&logits, &[4, 0, 1, 2, 0]), [2.0, -8.0, 0.0, 4.0, 4.0]);
        assert_eq!(penalty.apply(&logits, &[3]), [4.0, -4.0, 0.0, 2.0, 4.0]);
    }

    #[test]
    fn a_penalty_that_is_off_keeps_the_logits() {
        let logits = [4.0, -4.0];
        assert_eq!(RepeatPenalty::new(1.0, 64, 2).apply(&logits, &[0, 1]), logits);
        assert_eq!(RepeatPenalty::new(2.0, 0, 2).apply(&logits, &[0, 1]), logits);
    }
}
