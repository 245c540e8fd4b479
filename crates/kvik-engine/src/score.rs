//! Teacher forcing: how likely is each token of a given text, given those before it?
//!
//! The text runs through the model in chunks, with logits for every position of a chunk at once; the log-softmax of
//! those rows is spread over the threads. The buffer of logits stays bounded however long the text is.

use crate::{
    error::EngineError,
    lock::lock,
    log_softmax::{LogSoftmax, TokenLogprob},
    session::{Sequence, check_vocabulary},
};
use kvik_kernels::ThreadPool;
use kvik_model::layers::{Logits, Phase, Rows};
use std::sync::Mutex;

/// Logits held at once: 32 MiB of f32, which is 32 rows of the largest vocabularies (262,144 tokens).
const LOGITS_AT_ONCE: usize = 8 << 20;
/// Rows of a chunk at most: more would not make the matrix products faster.
pub(crate) const MAX_CHUNK_TOKENS: usize = 128;

/// How likely a text is.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The text.
    pub token_ids: Vec<u32>,
    /// Per token its natural-log probability given those before it; `None` for the first.
    pub logprobs: Vec<Option<f32>>,
    /// `exp` of the mean negative log-probability of all tokens but the first.
    pub perplexity: f64,
    /// Per token the most likely tokens at its place and their log-probabilities, most likely first; empty for the
    /// first token.
    pub top: Vec<Vec<(u32, f32)>>,
}

/// Scores `ids` with an empty `sequence`; see `Engine::score`.
pub(crate) fn score(
    sequence: &mut Sequence<'_>,
    pool: &ThreadPool,
    context_tokens: usize,
    ids: &[u32],
    top: usize,
    phase: Phase,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Score, EngineError> {
    if ids.len() < 2 {
        return Err(EngineError::TextTooShort(ids.len()));
    }
    if ids.len() > context_tokens {
        return Err(EngineError::TextTooLong { text_tokens: ids.len(), context_tokens });
    }
    let vocab_size = sequence.model.vocab_size();
    check_vocabulary(ids, vocab_size)?;

    let chunk_tokens = (LOGITS_AT_ONCE / vocab_size).clamp(1, MAX_CHUNK_TOKENS);
    let mut scored: Vec<TokenLogprob> = Vec::with_capacity(ids.len() - 1);
    // The last token is a target only: nothing follows it.
    for chunk in ids[..ids.len() - 1].chunks(chunk_tokens) {
        let done = scored.len();
        let targets = &ids[done + 1..][..chunk.len()];
        let logits = sequence.extend(chunk, Logits::All, phase)?;
        for (row, token) in score_rows(pool, &logits, targets, top).into_iter().enumerate() {
            scored.push(token.ok_or(EngineError::NoFiniteLogit { position: done + 1 + row })?);
        }
        on_progress(scored.len() + 1, ids.len());
    }

    let sum: f64 = scored.iter().map(|token| f64::from(token.logprob)).sum();
    let perplexity = (-sum / scored.len() as f64).exp();
    let logprobs = std::iter::once(None).chain(scored.iter().map(|token| Some(token.logprob))).collect();
    let top = std::iter::once(Vec::new()).chain(scored.into_iter().map(|token| token.top)).collect();
    Ok(Score { token_ids: ids.to_vec(), logprobs, perplexity, top })
}

/// The log-probability of each target under its row of `logits` `[targets, vocab]`; the rows are shared among the threads.
fn score_rows(pool: &ThreadPool, logits: &Rows, targets: &[u32], top: usize) -> Vec<Option<TokenLogprob>> {
    let rows: Vec<Mutex<Option<TokenLogprob>>> = targets.iter().map(|_| Mutex::default()).collect();
    pool.for_each_piece(targets.len(), 1, |piece| {
        let mut log_softmax = LogSoftmax::default();
        for row in piece {
            let token = log_softmax.token(logits.row(row), targets[row], top);
            *lock(&rows[row]) = token;
        }
    });
    rows.into_iter().map(|row| row.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::fake::Bigram;

    fn score_with(model: &mut Bigram, threads: usize, ids: &[u32], top: usize) -> Result<Score, EngineError> {
        let mut tokens = Vec::new();
        let mut sequence = Sequence { model, tokens: &mut tokens };
        score(&mut sequence, &ThreadPool::new(threads), 400, ids, top, Phase::Prefill, &mut |_, _| {})
    }

    #[test]
    fn a_bigram_models_text_has_the_closed_formulas_score() {
        let ids: Vec<u32> = (0..300).map(|i| (i * i + 3) % Bigram::VOCAB_SIZE as u32).collect();
        let by_formula: Vec<f64> =
            ids.windows(2).map(|pair| Bigram::log_probability(pair[0], pair[1])).collect();
        let perplexity = (-by_formula.iter().sum::<f64>() / by_formula.len() as f64).exp();

        let mut model = Bigram::default();
        let scored = score_with(&mut model, 2, &ids, 3).unwrap();
        assert!(model.longest_forward <= MAX_CHUNK_TOKENS);
        assert_eq!(scored.token_ids, ids);
        assert_eq!(scored.logprobs[0], None);
        for (position, expected) in by_formula.iter().enumerate() {
            let got = f64::from(scored.logprobs[position + 1].unwrap());
            assert!((got - expected).abs() < 1e-5, "position {position}: {got} {expected}");
        }
        assert!((scored.perplexity / perplexity - 1.0).abs() < 1e-5);

        assert!(scored.top[0].is_empty());
        for (position, pair) in ids.windows(2).enumerate() {
            let top = &scored.top[position + 1];
            assert_eq!(top.len(), 3);
            assert_eq!(top[0].0, Bigram::most_likely_after(pair[0]));
            if let Some(own) = top.iter().find(|(id, _)| *id == pair[1]) {
                assert_eq!(Some(own.1), scored.logprobs[position + 1]);
            }
        }
        assert_eq!(scored, score_with(&mut Bigram::default(), 1, &ids, 3).unwrap());
    }

    #[test]
    fn texts_that_have_no_score_are_refused_with_their_length() {
        let refused = |ids: &[u32]| score_with(&mut Bigram::default(), 1, ids, 0).unwrap_err();
        assert!(matches!(refused(&[]), EngineError::TextTooShort(0)));
        assert!(matches!(refused(&[5]), EngineError::TextTooShort(1)));
        let long = refused(&[1; 401]);
        assert!(matches!(long, EngineError::TextTooLong { text_tokens: 401, context_tokens: 400 }));
        let unknown = refused(&[1, 2, 9999]);
        assert!(matches!(unknown, EngineError::UnknownToken { id: 9999, position: 2, .. }));
        assert_eq!(
            unknown.to_string(),
            "token 9999 at position 2 is not in the vocabulary: ids go from 0 to 255"
        );
    }

    #[test]
    fn a_model_without_finite_logits_is_an_error_with_the_position() {
        let mut broken = Bigram { not_a_number_from: 150, ..Bigram::default() };
        let error = score_with(&mut broken, 1, &[1; 200], 0).unwrap_err();
        // The logits after token 150 (counted from 0) are those for position 151.
        assert!(matches!(error, EngineError::NoFiniteLogit { position: 151 }), "{error}");
    }
}
