//! Calls of functions: what a model writes when it wants one, found in its text, and the grammar that makes it write one.
//!
//! How the functions are told to the model is its chat template's business. How the model asks for one was settled in its
//! training, and each family has its own form ([`ToolCallFormat`]). A [`ToolCallParser`] turns the text, as it comes, into
//! deltas of text and of calls; it works character by character, so the result does not depend on how the text was cut,
//! and no part of a mark is ever shown. [`forced_call`] gives the constraint under which a model can only call, with
//! arguments that follow the function's schema.
//!
//! The rooms: `format` the forms and which one a template means; `parser` from text to deltas, with `call_object` for the
//! inside of one call; `forced` the grammar; `instructions` what to tell a model whose template knows nothing of functions.

mod call_object;
mod forced;
mod format;
mod instructions;
mod parser;

pub use forced::{InvalidTools, forced_call};
pub use format::ToolCallFormat;
pub use instructions::instructions;
pub use parser::ToolCallParser;

use serde_json::Value;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON schema of the object that it takes; `None` if it takes nothing.
    pub parameters: Option<Value>,
}

/// Whether functions may or must be called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None is.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// At least one must.
    Required,
    /// This one must.
    Named(String),
}

/// What became certain with a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolDelta {
    /// Text for the reader.
    Text(String),
    /// A call began.
    Call {
        /// Which call of the answer, counted from 0.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments: pieces of JSON text, to be put together.
    Arguments {
        /// Which call.
        index: usize,
        /// The next piece.
        text: String,
    },
    /// A call ended.
    End {
        /// Which call.
        index: usize,
        /// Whether it came to its end; the text may have been cut off in the middle.
        complete: bool,
    },
}

#[cfg(test)]
mod tests;
