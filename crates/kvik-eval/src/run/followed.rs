//! Texts that the model is led through, token by token.

use super::{Attempt, EvalError, Forced, LogProbabilities, Subject, kl_divergence};
use crate::journal::Mark;

impl<S: Subject> Attempt<'_, S> {
    /// Reads `context` and follows `forced` through decode.
    ///
    /// Against `yardstick`, one distribution for each token that is scored, the divergence of each is noted. With `keep`
    /// and no yardstick the distributions come back, to be one; the divergence of a cache from itself is 0.
    pub(super) fn follow(
        &mut self,
        context: &[u32],
        forced: &Forced,
        yardstick: Option<&[LogProbabilities]>,
        keep: bool,
    ) -> Result<Option<Vec<LogProbabilities>>, EvalError> {
        let mut sequence = self.prefill(context)?;
        let scored_tokens: usize = forced.spans.iter().map(|span| span.tokens).sum();
        let mut kept = Vec::with_capacity(if keep && yardstick.is_none() { scored_tokens } else { 0 });
        let mut mark = Mark { family: forced.family.to_owned(), ..Mark::default() };
        let mut chance = None;
        let mut fed = 0;
        let feed = |attempt: &mut Self, sequence: &mut S::Sequence, fed: &mut usize, to: usize| {
            while *fed < to {
                attempt.decode(sequence, forced.continuation[*fed])?;
                *fed += 1;
            }
            Ok::<_, EvalError>(())
        };
        let mut seen = 0;
        for span in &forced.spans {
            let mut right = true;
            for at in span.start..(span.start + span.tokens).min(forced.continuation.len()) {
                feed(self, &mut sequence, &mut fed, at)?;
                let row = LogProbabilities::of(self.subject.logits(&sequence))
                    .ok_or_else(|| self.no_finite_logit())?;
                let (token, favourite) = (forced.continuation[at], row.most_likely());
                right &= favourite == Some(token);
                self.outcome.nll -= row.of_token(token);
                self.outcome.scored_tokens += 1;
                if let Some(truth) = yardstick.and_then(|rows| rows.get(seen)) {
                    // JSON has no infinity.
                    self.outcome.kl.push(kl_divergence(truth, &row).min(1e6) as f32);
                    self.outcome.agreed += usize::from(truth.most_likely() == favourite);
                } else if keep {
                    self.outcome.kl.push(0.0);
                    self.outcome.agreed += 1;
                    kept.push(row);
                }
                seen += 1;
            }
            mark.sum += f64::from(u8::from(right));
            mark.weight += 1.0;
            if !span.guess.is_empty() {
                let lucky =
                    forced.continuation.get(span.start..span.start + span.tokens) == Some(&span.guess[..]);
                *chance.get_or_insert(0.0) += f64::from(u8::from(lucky));
            }
        }
        mark.chance = chance;
        self.outcome.marks.push(mark);
        self.outcome.usage.kv_bytes_end = self.subject.kv_bytes(&sequence);
        Ok((keep && yardstick.is_none()).then_some(kept))
    }
}
