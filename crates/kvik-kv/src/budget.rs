//! Budgets: how many rows each layer and head may keep of a total.
//!
//! A scorer says which rows of a head matter, an [`Allocator`] how many of them stay; any scorer works with any allocator.

use crate::pipeline::ParameterKind;

/// How a budget is spread over layers and heads.
pub trait Allocator: Send + Sync {
    /// Rows that each head of each rewritten layer keeps, `[layers][kv_heads]`: `per_head` on average, at most the rows that
    /// the head has.
    ///
    /// `scores` are the rows' scores, `[layers][kv_heads][rows]`, for allocators that look at them. At least `least` rows are
    /// left to each head that has as many.
    fn rows(&self, per_head: usize, least: usize, scores: &[Vec<Vec<f32>>]) -> Vec<Vec<usize>>;

    /// True if [`Self::rows`] looks at the scores, so that all layers have to be scored before any is cut.
    fn needs_scores(&self) -> bool {
        false
    }
}

/// Names of the allocators, for a method's `allocator` parameter.
pub const ALLOCATORS: ParameterKind = ParameterKind::Choice(&["uniform", "pyramid"]);

/// The allocator with a name of [`ALLOCATORS`].
///
/// # Panics
/// If there is none: the parameter's check lets no other name pass.
pub fn allocator(name: &str) -> Box<dyn Allocator> {
    match name {
        "uniform" => Box::new(Uniform),
        "pyramid" => Box::new(Pyramid),
        other => panic!("no allocator is called {other}"),
    }
}

/// The same for every head.
struct Uniform;

impl Allocator for Uniform {
    fn rows(&self, per_head: usize, least: usize, scores: &[Vec<Vec<f32>>]) -> Vec<Vec<usize>> {
        let keep = |head: &Vec<f32>| per_head.max(least).min(head.len());
        scores.iter().map(|layer| layer.iter().map(keep).collect()).collect()
    }
}

/// More for the first layers, less for the last, in even steps (PyramidKV, Cai et al. 2024): the last layer gets the share
/// `1 / BETA` of the average above `least`, the first what makes the average come out.
struct Pyramid;

/// PyramidKV's β.
const BETA: f64 = 20.0;

impl Allocator for Pyramid {
    fn rows(&self, per_head: usize, least: usize, scores: &[Vec<Vec<f32>>]) -> Vec<Vec<usize>> {
        let spread = per_head.saturating_sub(least) as f64;
        let last = scores.len().saturating_sub(1).max(1) as f64;
        let (lowest, highest) = (spread / BETA, spread * 2.0 - spread / BETA);
        let of_layer = |(index, layer): (usize, &Vec<Vec<f32>>)| {
            let share = highest - (highest - lowest) * index as f64 / last;
            let rows = if scores.len() == 1 { per_head } else { least + share.round() as usize };
            layer.iter().map(|head| rows.max(least).min(head.len())).collect()
        };
        scores.iter().enumerate().map(of_layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_have_the_average_that_was_asked_for_and_a_pyramid_falls() {
        let scores = vec![vec![vec![0.0; 1000]; 2]; 5];
        let uniform = allocator("uniform").rows(100, 32, &scores);
        assert!(uniform.iter().flatten().all(|&rows| rows == 100));
        let pyramid = allocator("pyramid").rows(100, 32, &scores);
        let total: usize = pyramid.iter().flatten().sum();
        assert!((total as i64 - 1000).abs() <= 5, "{total}");
        assert!(pyramid.windows(2).all(|layers| layers[0][0] > layers[1][0]));
        assert!(pyramid.iter().flatten().all(|&rows| rows >= 32));
        let short = allocator("pyramid").rows(100, 32, &[vec![vec![0.0; 10]], vec![vec![0.0; 10]]]);
        assert_eq!(short, [[10], [10]]);
    }
}
