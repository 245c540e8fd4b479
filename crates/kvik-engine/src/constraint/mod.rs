//! Constrained decoding: a text that must follow a JSON schema, a grammar, a regular expression or a list of choices.
//!
//! A [`ConstraintSource`] says what the text must look like, a [`ConstraintCompiler`] (one for each model, shared) turns
//! it into a [`Constraint`], and that is a [`TokenMask`](crate::sampling::TokenMask): before each token it takes out of
//! the logits all tokens after which the text could no longer be completed. Parsing is the work of the library
//! `llguidance`: an Earley parser over lexemes whose automata are derivatives of regular expressions, walked along a
//! trie of the vocabulary. What is here binds it to Kvik's tokenizers and bounds what a stranger's schema can cost.
//!
//! The rooms: `source` what is asked for; `limits` what is refused before any work; `vocabulary` the trie of token
//! bytes; `compiler` from source to constraint; `matcher` the constraint at work.

mod compiler;
mod error;
mod limits;
mod matcher;
mod source;
mod vocabulary;

pub use compiler::ConstraintCompiler;
pub use error::ConstraintError;
pub use matcher::Constraint;
pub use source::ConstraintSource;

pub(crate) use compiler::with_json_options;
pub(crate) use limits::check_schema;

#[cfg(test)]
mod tests;
