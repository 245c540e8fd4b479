//! What two texts begin with.

/// Tokens that `a` and `b` have in common at their beginning.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
