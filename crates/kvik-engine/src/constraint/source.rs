//! What a text must look like, as a request says it.

use serde_json::Value;

/// What a text must look like; the whole text, from its first character to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstraintSource {
    /// A JSON value that follows this JSON schema (draft 2020-12 without references to the outside). Properties come in
    /// the schema's order. White space between tokens of JSON is bounded, so that no model can loop in it.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A grammar in the Lark syntax of `llguidance`, whose start is the rule `start`.
    Grammar(String),
    /// A regular expression in the syntax of the crate `regex`, without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl ConstraintSource {
    /// What it is, in the words of error messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) | Self::JsonObject => "JSON schema",
            Self::Grammar(_) => "grammar",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "list of choices",
        }
    }
}
