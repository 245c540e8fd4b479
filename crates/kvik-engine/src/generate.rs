//! Generation: a prompt goes in, tokens and text come out one by one.
//!
//! What the session already holds of the prompt is kept, the rest is prefilled in chunks, and then one token is
//! sampled per step until something ends it: the model's own end-of-text token, a stop string, the limit of tokens,
//! the end of the context, or the caller, who hears of every chunk and token and can stop after each. All buffers are
//! sized before the first token, so that decoding does not allocate, unless a constraint has to be followed.

mod completion;
mod transcript;

use crate::{
    constraint::ConstraintSource,
    error::EngineError,
    log_softmax::TokenLogprob,
    sampling::{SamplingOptions, TokenMask},
    session::{Sequence, check_vocabulary},
};
use kvik_model::{
    Tokenizer,
    layers::{Logits, Phase},
};
use std::{ops::ControlFlow, time::Instant};

pub(crate) use completion::{Chosen, Completion, CompletionOptions};

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// The tokens to continue. Empty means the start of a text, where the tokenizer has a token for that.
    pub prompt: Vec<u32>,
    /// How many tokens to generate at most; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Strings that end the text when they appear in it; they are not part of it.
    pub stop: Vec<String>,
    /// Report the log-probability of every token, and this many of the most likely ones beside it.
    pub logprobs: Option<usize>,
    /// Go on after the model's end-of-text token, for measurements that need a fixed number of tokens.
    pub ignore_end_of_text: bool,
    /// What the text must look like. It ends when nothing more may follow, whether or not the model says that it ended.
    pub constraint: Option<ConstraintSource>,
}

/// What happens while a request runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A chunk of the prompt was computed.
    Prefill {
        /// Tokens computed so far.
        done: usize,
        /// Tokens to compute: those that the session did not hold.
        total: usize,
    },
    /// A token was chosen.
    Token {
        /// The token.
        id: u32,
        /// The text that became certain with it: often none, while a character or a stop string may be unfinished.
        text: &'a str,
        /// Its log-probability, if the request asked for it.
        logprob: Option<&'a TokenLogprob>,
    },
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it, as the last completion token says, or its constraint allows nothing more.
    EndOfText,
    /// This stop string appeared.
    StopString(String),
    /// The request's `max_tokens` were generated.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// The caller stopped it.
    Cancelled,
    /// The request's time was over.
    Deadline,
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The tokens that were continued.
    pub prompt_ids: Vec<u32>,
    /// The tokens that were chosen, the one that ended the text included.
    pub completion_ids: Vec<u32>,
    /// The text: all event texts one after the other.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// The seed that the tokens were drawn with: the request's, or the fresh one.
    pub seed: u64,
    /// Prompt tokens that were computed; the others the session held already.
    pub prefill_tokens: usize,
    /// Time for the prompt.
    pub prefill_seconds: f64,
    /// Time for the tokens after the first.
    pub decode_seconds: f64,
    /// Time from the request to the first token; 0 if there was none.
    pub time_to_first_token_seconds: f64,
    /// Bytes of RAM that the keys and values of the session take.
    pub kv_bytes_in_use: usize,
    /// Bytes of files that they take.
    pub kv_bytes_in_files: usize,
    /// Bytes that the same tokens would take in an uncompressed bf16 cache.
    pub kv_bytes_uncompressed_bf16: usize,
    /// Per completion token, if the request asked for them.
    pub logprobs: Vec<TokenLogprob>,
}

impl Generation {
    /// Prompt tokens computed per second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        rate(self.prefill_tokens, self.prefill_seconds)
    }

    /// Tokens per second after the first, which belongs to the prefill.
    pub fn decode_tokens_per_second(&self) -> f64 {
        rate(self.completion_ids.len().saturating_sub(1), self.decode_seconds)
    }
}

fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// One sequence and the limits that it runs in.
pub(crate) struct Generator<'a> {
    pub(crate) sequence: Sequence<'a>,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) context_tokens: usize,
    pub(crate) prefill_chunk_tokens: usize,
    /// What takes out tokens before each is chosen.
    pub(crate) mask: Option<Box<dyn TokenMask>>,
}

impl Generator<'_> {
    /// Runs `request`; see `Engine::generate`.
    pub(crate) fn run(
        mut self,
        request: &GenerateRequest,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let start = Instant::now();
        let vocab_size = self.sequence.model.vocab_size();
        let prompt = self.prompt(request)?;
        check_vocabulary(&prompt, vocab_size)?;
        let options = CompletionOptions {
            max_tokens: request.max_tokens,
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            logprobs: request.logprobs,
            ignore_end_of_text: request.ignore_end_of_text,
            mask: self.mask.take(),
            ..CompletionOptions::default()
        };
        let mut completion = Completion::new(options, prompt.len(), self.context_tokens, vocab_size)?;
        let mut logprobs =
            Vec::with_capacity(if request.logprobs.is_some() { completion.limit() } else { 0 });

        let kept = self.sequence.keep_common_prefix(&prompt);
        let missing = &prompt[kept..];
        let prefilled = self.sequence.prefill(missing, self.prefill_chunk_tokens, |done| {
            on_event(Event::Prefill { done, total: missing.len() })
        })?;
        let prefill_seconds = start.elapsed().as_secs_f64();
        let mut first_token: Option<Instant> = None;
        let stop = match (prefilled, completion.ends_empty()) {
            (ControlFlow::Break(()), _) => StopReason::Cancelled,
            (ControlFlow::Continue(_), Some(at_limit)) => at_limit,
            (ControlFlow::Continue(mut logits), None) => loop {
                let Chosen { id, logprob, ended } =
                    completion.push(self.tokenizer, &logits, self.sequence.tokens)?;
                first_token.get_or_insert_with(Instant::now);
                let text = completion.fresh_text();
                let flow = on_event(Event::Token { id, text, logprob: logprob.as_ref() });
                logprobs.extend(logprob);
                if let Some(reason) = ended {
                    break reason;
                }
                if flow.is_break() {
                    break StopReason::Cancelled;
                }
                logits = self.sequence.extend(&[id], Logits::Last, Phase::Decode)?;
            },
        };
        let decode_seconds = first_token.map_or(0.0, |first| first.elapsed().as_secs_f64());

        let prefill_tokens = self.sequence.tokens.len().min(prompt.len()) - kept;
        let kv_bytes = self.sequence.model.kv_bytes();
        let seed = completion.seed();
        let (completion_ids, text) = completion.into_parts();
        Ok(Generation {
            prompt_ids: prompt,
            completion_ids,
            text,
            stop,
            seed,
            prefill_tokens,
            prefill_seconds,
            decode_seconds,
            time_to_first_token_seconds: first_token.map_or(0.0, |first| (first - start).as_secs_f64()),
            kv_bytes_in_use: kv_bytes.in_use,
            kv_bytes_in_files: kv_bytes.in_files,
            kv_bytes_uncompressed_bf16: kv_bytes.uncompressed_bf16,
            logprobs,
        })
    }

    /// The tokens to continue: the request's, or the one that begins a text.
    fn prompt(&self, request: &GenerateRequest) -> Result<Vec<u32>, EngineError> {
        let prompt = match (request.prompt.as_slice(), self.tokenizer.bos()) {
            ([], None) => return Err(EngineError::EmptyPrompt),
            ([], Some(beginning)) => vec![beginning],
            (prompt, _) => prompt.to_vec(),
        };
        if prompt.len() >= self.context_tokens {
            let context_tokens = self.context_tokens;
            return Err(EngineError::PromptTooLong { prompt_tokens: prompt.len(), context_tokens });
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests;
