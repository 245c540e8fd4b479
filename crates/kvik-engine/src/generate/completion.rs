//! The answer to one prompt while it grows: how its tokens are chosen, its text, and what ends it.
//!
//! This is all that generation remembers of a sequence beside its cache. It moves one token at a time and owns nothing of the
//! model, so that whoever runs the model can hold many: [`Generator`](super::Generator) runs one, the
//! [`Service`](crate::service::Service) a batch, and both give the same tokens.

use super::{StopReason, transcript::Transcript};
use crate::{
    error::EngineError,
    log_softmax::{LogSoftmax, TokenLogprob},
    sampling::{Sampler, SamplingOptions, Steered, Steering, TokenMask},
    stop::StopStrings,
};
use kvik_model::Tokenizer;

/// How an answer is to be generated.
#[derive(Default)]
pub(crate) struct CompletionOptions {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: SamplingOptions,
    pub(crate) steering: Steering,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) ignore_end_of_text: bool,
    /// Takes out tokens before each is chosen.
    pub(crate) mask: Option<Box<dyn TokenMask>>,
}

/// An answer that grows.
pub(crate) struct Completion {
    sampler: Sampler,
    steered: Steered,
    mask: Option<Box<dyn TokenMask>>,
    /// A copy of the logits to change: the model's own stay for the log-probabilities.
    changed: Vec<f32>,
    logprobs: Option<usize>,
    log_softmax: LogSoftmax,
    ignore_end_of_text: bool,
    transcript: Transcript,
    ids: Vec<u32>,
    limit: usize,
    at_limit: StopReason,
}

/// What became of a step.
pub(crate) struct Chosen {
    /// The token.
    pub(crate) id: u32,
    /// Its log-probability, if it was asked for.
    pub(crate) logprob: Option<TokenLogprob>,
    /// Why the answer ends with it, if it does.
    pub(crate) ended: Option<StopReason>,
}

impl Completion {
    /// An empty answer to a prompt of `prompt_tokens`, fewer than the context holds.
    ///
    /// # Errors
    /// [`EngineError::Sampling`] or [`EngineError::Stop`] if an option means nothing.
    pub(crate) fn new(
        options: CompletionOptions,
        prompt_tokens: usize,
        context_tokens: usize,
        vocab_size: usize,
    ) -> Result<Self, EngineError> {
        let sampler = Sampler::new(options.sampling, vocab_size)?;
        let stops = StopStrings::new(options.stop)?;
        // The last token needs no place of its own in the cache, but it belongs to the sequence.
        let room = context_tokens - prompt_tokens;
        let (limit, at_limit) = match options.max_tokens {
            Some(max_tokens) if max_tokens <= room => (max_tokens, StopReason::MaxTokens),
            _ => (room, StopReason::ContextFull),
        };
        Ok(Self {
            sampler,
            steered: Steered::new(options.steering),
            mask: options.mask,
            changed: Vec::new(),
            logprobs: options.logprobs,
            log_softmax: LogSoftmax::default(),
            ignore_end_of_text: options.ignore_end_of_text,
            transcript: Transcript::new(stops, limit),
            ids: Vec::with_capacity(limit),
            limit,
            at_limit,
        })
    }

    /// Why the answer ends before its first token, if nothing was asked for.
    pub(crate) fn ends_empty(&self) -> Option<StopReason> {
        (self.limit == 0).then(|| self.at_limit.clone())
    }

    /// Chooses the token that follows `history` (the whole sequence so far), given the model's `logits` `[vocab]` for it.
    ///
    /// # Errors
    /// [`EngineError::NoFiniteLogit`] if there is nothing to choose from, [`EngineError::Mask`] if nothing may follow.
    pub(crate) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &[f32],
        history: &[u32],
    ) -> Result<Chosen, EngineError> {
        let id = self.choose(tokenizer, logits, history)?;
        let id = id.ok_or(EngineError::NoFiniteLogit { position: history.len() })?;
        if let Some(mask) = &mut self.mask {
            mask.accept(id)?;
        }
        self.steered.accept(id);
        let logprob = self.logprobs.and_then(|top| self.log_softmax.token(logits, id, top));
        self.ids.push(id);

        let ended = if tokenizer.is_end_of_generation(id) && !self.ignore_end_of_text {
            Some(StopReason::EndOfText)
        } else if let Some(stop) = self.transcript.push(tokenizer, id) {
            Some(StopReason::StopString(stop.to_owned()))
        } else if self.mask.as_ref().is_some_and(|mask| mask.is_finished()) {
            Some(StopReason::EndOfText)
        } else {
            (self.ids.len() == self.limit).then(|| self.at_limit.clone())
        };
        let ended = ended.map(|reason| self.transcript.finish(reason));
        Ok(Chosen { id, logprob, ended })
    }

    fn choose(
        &mut self,
        tokenizer: &Tokenizer,
        logits: &[f32],
        history: &[u32],
    ) -> Result<Option<u32>, EngineError> {
        let generated = self.ids.len();
        if self.mask.is_none() && self.steered.is_idle(generated) {
            return Ok(self.sampler.sample(logits, history));
        }
        self.changed.clear();
        self.changed.extend_from_slice(logits);
        if let Some(mask) = &mut self.mask {
            mask.mask(&mut self.changed)?;
        }
        self.steered.apply(&mut self.changed, generated, tokenizer.end_of_generation());
        Ok(self.sampler.sample(&self.changed, history))
    }

    /// Ends it for `reason` before its next token: text that was held back is certain now. Returns the reason, which is another if
    /// a stop string is complete then. Changes nothing of an answer that has ended.
    pub(crate) fn finish(&mut self, reason: StopReason) -> StopReason {
        self.transcript.finish(reason)
    }

    /// The text that became certain since the last call.
    pub(crate) fn fresh_text(&mut self) -> &str {
        self.transcript.fresh()
    }

    /// Tokens that it may have at most.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The seed that tokens are drawn with.
    pub(crate) fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    /// The tokens and the whole text.
    pub(crate) fn into_parts(self) -> (Vec<u32>, String) {
        (self.ids, self.transcript.into_text())
    }
}
