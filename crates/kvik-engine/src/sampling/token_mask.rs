//! Which tokens may follow: the seam between sampling and whatever restricts it.
//!
//! A mask sees the logits before the sampler does and takes out what must not come; the sampler chooses among the
//! rest, and the mask hears what was chosen. Penalties, filters and the draw know nothing of it: a token that is taken
//! out has the logit minus infinity, which no step of the sampler chooses.

/// Decides which tokens may come next in one sequence.
pub trait TokenMask: Send {
    /// Sets the logits `[vocab]` of all tokens that must not come next to minus infinity and leaves the others as they are.
    /// Rows of a padded vocabulary are no tokens and are taken out as well.
    ///
    /// # Errors
    /// [`MaskError`] when no token may come, or finding out which would take too long. The sequence cannot go on then.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), MaskError>;

    /// Hears that `token` was chosen.
    ///
    /// # Errors
    /// [`MaskError`] when it must not come here.
    fn accept(&mut self, token: u32) -> Result<(), MaskError>;

    /// Whether nothing may follow but a token that ends the text: the sequence can end without one.
    fn is_finished(&self) -> bool;
}

/// A sequence cannot go on as it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text cannot go on as the request demands: {0}")]
pub struct MaskError(pub String);
