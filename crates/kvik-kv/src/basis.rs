//! Another basis for what is cached, built into a model's weights.

/// The basis of the values of one KV head.
///
/// The model caches `into · v` instead of `v`, and multiplies what attention gives by `back`. With `back · into` the identity
/// nothing changes but the numbers in the cache; with a smaller `dim` they are a projection.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueBasis {
    /// Numbers of a cached value.
    pub dim: usize,
    /// `[dim, value_dim]`.
    pub into: Vec<f32>,
    /// `[value_dim, dim]`.
    pub back: Vec<f32>,
}
