//! What can go wrong with an evaluation, as sentences that say what to do.

use std::path::PathBuf;

use kvik_engine::EngineError;
use kvik_model::{ChatTemplateError, tokenizer::TokenizerError};

/// An evaluation cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The model refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A text cannot be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template refuses a conversation.
    #[error(transparent)]
    ChatTemplate(#[from] ChatTemplateError),
    /// The chat template changes what users say.
    #[error(
        "the model's chat template does not repeat the messages as they are, so prompts of an exact length cannot be \
         written with it"
    )]
    ChatTemplateRewrites,
    /// There is no task of that name.
    #[error("there is no task named '{name}'; tasks are {known}")]
    UnknownTask {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// There is no experiment of that name.
    #[error("there is no experiment named '{name}'; experiments are {known}")]
    UnknownExperiment {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Whoever listened wanted to stop.
    #[error("stopped")]
    Stopped,
    /// Part of a task was asked for that it does not have.
    #[error("task {task} has no part named '{name}'; its parts are {known}")]
    UnknownPart {
        /// The task.
        task: &'static str,
        /// What was asked for.
        name: String,
        /// All parts.
        known: String,
    },
    /// An item needs more tokens than the model's context has.
    #[error(
        "task {task} at length {length} needs sequences of {needed} tokens, and the context holds {holds}: choose shorter \
         --lengths, or a larger context with --ctx"
    )]
    ContextTooShort {
        /// The task.
        task: String,
        /// The length asked for, in tokens.
        length: usize,
        /// Tokens of the item's longest sequence.
        needed: usize,
        /// Tokens that the context holds.
        holds: usize,
    },
    /// The length leaves no room for what a task needs.
    #[error(
        "task {task} needs at least {needed} tokens with this model, {length} were asked for: choose longer --lengths"
    )]
    LengthTooShort {
        /// The task.
        task: String,
        /// The length asked for, in tokens.
        length: usize,
        /// The least that works.
        needed: usize,
    },
    /// A task cannot be built at a length.
    #[error("task {task} cannot fill {length} tokens: {reason}")]
    LengthTooLong {
        /// The task.
        task: String,
        /// The length asked for, in tokens.
        length: usize,
        /// What runs out.
        reason: &'static str,
    },
    /// More data is wanted than comes with Kvik, and the file that has it is not there.
    #[error(
        "{wanted} are asked for and the sample that comes with Kvik has {has}; the whole set is read from {}, which is not \
         there ({source_hint}): set KVIK_DATA to the folder that holds it, or ask for less", path.display()
    )]
    MissingData {
        /// How much of what.
        wanted: String,
        /// How much there is.
        has: usize,
        /// Where the file was looked for.
        path: PathBuf,
        /// Where it comes from.
        source_hint: &'static str,
    },
    /// More data is wanted than any file has.
    #[error("{wanted} are asked for and {} has {has}: ask for less", path.display())]
    NotEnoughData {
        /// How much of what.
        wanted: String,
        /// How much there is.
        has: usize,
        /// The file.
        path: PathBuf,
    },
    /// A data file is not what it should be.
    #[error("{} cannot be used: {reason}", path.display())]
    DamagedData {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A number of the plan means nothing.
    #[error("{0}")]
    Plan(String),
    /// The model's output is not a distribution.
    #[error("the model gives no finite logit under {kv}: its file is damaged, or the method broke the cache")]
    NoFiniteLogit {
        /// The pipeline.
        kv: String,
    },
    /// A pipeline cannot be read or used.
    #[error("--kv '{kv}': {reason}")]
    Pipeline {
        /// The pipeline as written.
        kv: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl EvalError {
    /// [`Self::LengthTooShort`].
    pub(crate) fn too_short(task: &str, length: usize, needed: usize) -> Self {
        Self::LengthTooShort { task: task.to_owned(), length, needed }
    }
}
