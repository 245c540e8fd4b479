//! Why a constraint is refused.

/// A constraint cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The text of the schema, grammar or expression is too long.
    #[error("the {what} has {size} bytes, and at most {limit} are accepted: make it shorter")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The most bytes that are accepted.
        limit: usize,
    },
    /// Nested too deep.
    #[error("the {what} is nested deeper than {limit} levels: flatten it, or give its parts names")]
    TooDeep {
        /// What is too deep.
        what: &'static str,
        /// The deepest nesting that is accepted.
        limit: usize,
    },
    /// Combinations multiply.
    #[error(
        "the JSON schema unfolds to more than {limit} parts, because allOf, anyOf and $ref multiply: combine fewer of them"
    )]
    TooManyCombinations {
        /// The most that are accepted.
        limit: u64,
    },
    /// An object of many properties that may all be left out.
    #[error(
        "an object of the JSON schema has {count} properties that are not required, and at most {limit} are accepted: require \
         some, or leave some out"
    )]
    TooManyProperties {
        /// How many there are.
        count: usize,
        /// The most that are accepted.
        limit: usize,
    },
    /// A step that no small automaton can count in.
    #[error(
        "the JSON schema has multipleOf {0}, which takes too large an automaton: use a step of at most three digits before its \
         zeros, and combine few"
    )]
    MultipleOf(String),
    /// A `$ref` or a like keyword names something outside the schema.
    #[error(
        "the JSON schema refers to {0:?}, and nothing outside the schema is read: put the definition under $defs and refer \
         to it as \"#/$defs/name\""
    )]
    OutsideReference(String),
    /// A list of choices without any.
    #[error("the list of choices is empty: give at least one text")]
    NoChoice,
    /// More choices than are accepted.
    #[error("the list has {count} choices, and at most {limit} are accepted")]
    TooManyChoices {
        /// How many there are.
        count: usize,
        /// The most that are accepted.
        limit: usize,
    },
    /// It means nothing, needs what is not supported, or is too complex.
    #[error("the {what} cannot be used: {reason}")]
    Refused {
        /// What is refused.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The model's tokens do not fit the library's tables.
    #[error("texts of this model cannot be constrained: {0}")]
    Vocabulary(String),
}
