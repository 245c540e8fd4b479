//! What a row is computed for.

/// What a row is computed for, and so how its products may be rounded.
///
/// A prompt is bound by arithmetic: its rows may go through whatever unit multiplies fastest. A decoded token is bound by
/// memory: its rows get the most exact products that keep up with it. The caller says which, row by row, so that a
/// token's result does not depend on how many others happen to share its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Part of a prompt.
    Prefill,
    /// A token whose successor is about to be chosen, or a draft that is checked as if it were one.
    Decode,
}
