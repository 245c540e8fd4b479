//! Hadamard: values turned so that no channel stands out, before they are cached in few bits.
//!
//! The part of Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", NeurIPS 2024 (arXiv 2404.00456), that
//! concerns values.
//!
//! A group of channels with one large number among them gets a large scale, and the others lose their digits. Multiplied with a
//! Walsh-Hadamard matrix over the root of its size, a value keeps its length while every channel becomes a sum of all of them,
//! half with their signs turned: large numbers are shared out. The matrix is built into the projection that makes values and its
//! transpose into the one behind attention, once, when the model is loaded: the model computes the same as before but for the
//! rounding of these two weights to F16, and nothing is computed more for a token.
//!
//! Alone it saves nothing; it is for what follows, as in `hadamard+kivi`. Keys stay as they are: turning them would have to come
//! after their rotation by position. Heads must have a power of two of value channels. The two projections take 16 bits a weight
//! in place of the file's. All sequences of a model have it or none, so it is named when the model is loaded.

use crate::{Arguments, Direction, KvShape, LayerShape, Method, MethodInfo, ValueBasis};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "hadamard",
    direction: Direction::Channels,
    summary: "turns values so that no channel stands out, inside the weights",
    paper: "Ashkboos et al., NeurIPS 2024, arXiv 2404.00456",
    parameters: &[],
    query_free: true,
    calibration: None,
    source: include_str!("hadamard.rs"),
    check: |_| None,
    build: |arguments, shape| Ok(Box::new(Hadamard::new(arguments, shape)?)),
};

#[derive(Clone, Copy)]
struct Hadamard;

impl Hadamard {
    fn new(_arguments: &Arguments, shape: &KvShape) -> Result<Self, String> {
        let odd = shape.layers.iter().find(|layer| !layer.value_dim.is_power_of_two());
        match odd {
            Some(layer) => Err(format!(
                "heads have {} value channels, and the Walsh-Hadamard matrix needs a power of two",
                layer.value_dim
            )),
            None => Ok(Self),
        }
    }
}

impl Method for Hadamard {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn changes_weights(&self) -> bool {
        true
    }

    fn value_bases(&self, _layer: usize, shape: LayerShape) -> Option<Vec<ValueBasis>> {
        // The matrix is its own transpose, and its own inverse.
        let matrix = walsh_hadamard(shape.value_dim);
        let basis = ValueBasis { dim: shape.value_dim, into: matrix.clone(), back: matrix };
        Some(vec![basis; shape.kv_heads])
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(*self)
    }
}

/// The matrix of size `dim` over the root of `dim`, `[dim, dim]`.
fn walsh_hadamard(dim: usize) -> Vec<f32> {
    let scale = 1.0 / (dim as f32).sqrt();
    let sign =
        |row: usize, column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..dim * dim).map(|index| scale * sign(index / dim, index % dim)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_its_own_inverse() {
        let (dim, matrix) = (16, walsh_hadamard(16));
        for row in 0..dim {
            for column in 0..dim {
                let product: f32 = (0..dim).map(|k| matrix[row * dim + k] * matrix[k * dim + column]).sum();
                assert!((product - if row == column { 1.0 } else { 0.0 }).abs() < 1e-6);
            }
        }
    }
}
