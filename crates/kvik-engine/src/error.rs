//! What can go wrong with a request, as sentences that say what to do.

use crate::{
    constraint::ConstraintError,
    prefix::PrefixError,
    sampling::{InvalidSampling, MaskError},
    stop::EmptyStopString,
};
use kvik_kv::{CacheError, KvStoreError};
use kvik_model::{CheckpointError, ForwardError, ModelError, PrepareError, tokenizer::TokenizerError};
use std::sync::Arc;

/// A request cannot be served, or a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's files cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Text was to be read or written, and the files have no tokenizer that can be used.
    #[error(transparent)]
    Tokenizer(#[from] Arc<TokenizerError>),
    /// The files have no network that can be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's weights cannot be changed as the pipeline asks.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No room for keys and values.
    #[error(transparent)]
    KvStore(#[from] KvStoreError),
    /// A method of the sequence's pipeline does not fit the model or cannot go on.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The model cannot compute more of this sequence.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A sampling option has a value that means nothing.
    #[error(transparent)]
    Sampling(#[from] InvalidSampling),
    /// A stop string is empty.
    #[error(transparent)]
    Stop(#[from] EmptyStopString),
    /// What the text must look like cannot be understood or is too much.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The text cannot go on as its constraint demands.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Prefixes cannot be kept as asked.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A step has no room for prompts.
    #[error(
        "a step of {step_tokens} tokens for up to {max_running} sequences was asked for: use at least one sequence, and \
         more tokens than sequences, so that prompts are read while all of them answer"
    )]
    Step {
        /// Tokens of a step.
        step_tokens: usize,
        /// Sequences at the same time.
        max_running: usize,
    },
    /// The system refused a thread.
    #[error("cannot start the service's thread: {0}")]
    Thread(std::io::Error),
    /// No thread, or more than any machine has.
    #[error("{threads} threads were asked for: use 1 to {max}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// The most that are accepted.
        max: usize,
    },
    /// The prompt would be computed zero tokens at a time.
    #[error("the prefill chunk size is 0 tokens: use a positive number, 512 is usual")]
    PrefillChunk,
    /// A context that the model cannot have.
    #[error("a context of {asked} tokens was asked for: use 1 to {limit} with this model")]
    Context {
        /// Tokens asked for.
        asked: usize,
        /// Positions that the model can tell apart.
        limit: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty and the model has no token that begins a text: give it at least one word")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and the context holds {context_tokens}, of which at least one is for \
         the answer: shorten the prompt or choose a larger context"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// A text to score does not fit.
    #[error(
        "the text has {text_tokens} tokens and the context holds {context_tokens}: score it in parts of at most \
         {context_tokens} tokens, or choose a larger context"
    )]
    TextTooLong {
        /// Tokens of the text.
        text_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// A text to score has no token that follows another.
    #[error("a text of {0} tokens has no score: the first token is given, so at least two are needed")]
    TextTooShort(usize),
    /// A token id that the model does not know.
    #[error("token {id} at position {position} is not in the vocabulary: ids go from 0 to {max}", max = .vocab_size.saturating_sub(1))]
    UnknownToken {
        /// The id.
        id: u32,
        /// Where it stands, counted from 0.
        position: usize,
        /// How many tokens the model knows.
        vocab_size: usize,
    },
    /// The model's output is not a distribution.
    #[error(
        "the model gives no finite logit for position {position}: its file is damaged, or its weights overflow in \
         the precision that they are stored in"
    )]
    NoFiniteLogit {
        /// The position of the token that was to be chosen or scored, counted from 0.
        position: usize,
    },
}
