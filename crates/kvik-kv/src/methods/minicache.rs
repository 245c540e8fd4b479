//! MiniCache: two neighbouring layers keep one direction for a token, and a length each.
//!
//! Liu et al., "MiniCache: KV Cache Compression in Depth Dimension for Large Language Models", NeurIPS 2024 (arXiv 2405.14366).
//!
//! In the deeper half of a model the keys of a token at one layer point nearly where they point at the next, and so do its
//! values. From layer `start` on, layers are taken in pairs: of a token's two keys the pair stores the direction between them,
//! found on the great circle at `t` of the way from the lower layer's to the upper one's, and how long either key is; values
//! alike. Tokens whose keys or values differ most are not merged: the `retain` share with the largest angles (`rule=share`), or
//! those whose angle lies in the uppermost `retain` of the range of angles (`rule=range`, the paper's words, which puts no bound
//! on how many they are). Keys and values choose apart, and what either of them chooses stays whole.
//!
//! The prompt attends to every layer's own keys and values, and is merged when it has been read. Tokens that are decoded wait as
//! they are until there are `every` of them. Attention multiplies scores and probabilities by the lengths and never restores a
//! row. The angle between two keys does not depend on their rotation, so keys are merged rotated.
//!
//! It needs layers in a row with heads of the same shape that see the whole sequence: not Gemma 3, where one layer in six does.
//! The saving is at most half of the paired layers' blocks, and each layer still reads what the pair shares. The smaller a model,
//! the less its layers agree: compare `start` values with `kvik eval kl` before trusting it. A method that evicts while decoding
//! pulls a pair's blocks apart again.

use std::ops::Range;

use kvik_kernels::attention::PlaneKind;

use crate::{
    Arguments, CacheError, Direction, KvShape, Method, MethodInfo, OpenCache, Parameter, ParameterKind,
    SharedRow, select::top_rows,
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "minicache",
    direction: Direction::Depth,
    summary: "two neighbouring layers share the direction of keys and values",
    paper: "Liu et al., NeurIPS 2024, arXiv 2405.14366",
    parameters: &[
        Parameter {
            name: "start",
            kind: ParameterKind::CountOr { word: "half", min: 0, max: 4096 },
            default: "half",
            about: "the layer from which on layers go in pairs (the paper's default is half of them)",
        },
        Parameter {
            name: "t",
            kind: ParameterKind::Number { min: 0.0, max: 1.0 },
            default: "0.6",
            about: "how far the common direction lies toward the upper layer's (the paper's default)",
        },
        Parameter {
            name: "retain",
            kind: ParameterKind::Number { min: 0.0, max: 1.0 },
            default: "0.05",
            about: "part of the tokens, or of the range of angles, that is not merged (the paper's default)",
        },
        Parameter {
            name: "rule",
            kind: ParameterKind::Choice(&["share", "range"]),
            default: "share",
            about: "what `retain` is a part of: the tokens, which bounds memory, or the range of angles (the paper's rule)",
        },
        Parameter {
            name: "every",
            kind: ParameterKind::Count { min: 1, max: 4096 },
            default: "16",
            about: "decoded tokens that are merged together",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("minicache.rs"),
    check: |_| None,
    build: |arguments, shape| Ok(Box::new(MiniCache::new(arguments, shape)?)),
};

#[derive(Clone)]
struct MiniCache {
    /// Lower and upper layer.
    pairs: Vec<[usize; 2]>,
    t: f64,
    retain: f64,
    by_range: bool,
    every: usize,
    /// Tokens whose rows are merged, or were found too different.
    done: usize,
}

impl MiniCache {
    fn new(arguments: &Arguments, shape: &KvShape) -> Result<Self, String> {
        let layers = shape.layers.len();
        let start = match arguments.text("start") {
            "half" => layers / 2,
            _ => arguments.count("start"),
        };
        let alike = |lower: usize| {
            shape.layers[lower].window.is_none()
                && shape.layers[lower] == shape.layers[lower + 1]
                && shape.rotary[lower] == shape.rotary[lower + 1]
        };
        let pairs = (start..layers.saturating_sub(1)).step_by(2).filter(|&lower| alike(lower));
        let pairs: Vec<[usize; 2]> = pairs.map(|lower| [lower, lower + 1]).collect();
        if pairs.is_empty() {
            return Err(format!(
                "of the {layers} layers there are no two in a row from layer {start} on that see the whole sequence and have the \
                 same heads; choose an earlier start or another model"
            ));
        }
        Ok(Self {
            pairs,
            t: arguments.number("t"),
            retain: arguments.number("retain"),
            by_range: arguments.text("rule") == "range",
            every: arguments.count("every"),
            done: 0,
        })
    }

    /// Merges the rows of all tokens from `self.done` on.
    fn merge(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let tokens = self.done..cache.tokens();
        for &layers in &self.pairs {
            for kv_head in 0..cache.layer(layers[0]).kv_heads {
                self.merge_head(cache, layers, kv_head, &tokens)?;
            }
        }
        self.done = tokens.end;
        Ok(())
    }

    fn merge_head(
        &self,
        cache: &mut OpenCache<'_>,
        layers: [usize; 2],
        kv_head: usize,
        tokens: &Range<usize>,
    ) -> Result<(), CacheError> {
        let rows = rows_of_both(cache, layers, kv_head, tokens);
        let keys = self.merged(cache, layers, kv_head, &rows, PlaneKind::Keys);
        let values = self.merged(cache, layers, kv_head, &rows, PlaneKind::Values);
        let mut stays = vec![false; rows.len()];
        for plane in [&keys, &values] {
            let angles: Vec<f32> = plane.iter().map(|merged| merged.angle as f32).collect();
            for row in self.too_different(&angles) {
                stays[row as usize] = true;
            }
        }
        let merged = rows.iter().zip(keys.iter().zip(&values)).zip(&stays).filter(|(_, stays)| !**stays);
        let merged: Vec<SharedRow<'_>> = merged
            .map(|((&rows, (key, value)), _)| SharedRow {
                rows,
                key: &key.direction,
                value: &value.direction,
                key_lengths: key.lengths,
                value_lengths: value.lengths,
            })
            .collect();
        cache.share_rows(layers, kv_head, &merged)
    }

    /// The keys or values of `rows` at both layers, merged one by one.
    fn merged(
        &self,
        cache: &OpenCache<'_>,
        layers: [usize; 2],
        kv_head: usize,
        rows: &[[usize; 2]],
        plane: PlaneKind,
    ) -> Vec<Merged> {
        let first = [0, 1].map(|side| rows.iter().map(|row| row[side]).min().unwrap_or_default());
        let both = [0, 1].map(|side| {
            let rows = first[side]..cache.rows(layers[side], kv_head);
            cache.plane(layers[side], kv_head, plane, rows)
        });
        let dim = cache.layer(layers[0]).tile().plane(plane).0;
        let vector = |side: usize, row: usize| &both[side][(row - first[side]) * dim..][..dim];
        rows.iter().map(|&[lower, upper]| merge(vector(0, lower), vector(1, upper), self.t)).collect()
    }

    /// Indices of the rows that are not merged.
    fn too_different(&self, angles: &[f32]) -> Vec<u32> {
        if self.retain == 1.0 {
            return (0..angles.len() as u32).collect();
        }
        if self.by_range {
            let most = angles.iter().copied().fold(0.0, f32::max);
            let least = angles.iter().copied().fold(f32::INFINITY, f32::min);
            let bound = most - self.retain as f32 * (most - least);
            return (0..angles.len() as u32).filter(|&row| angles[row as usize] > bound).collect();
        }
        let share = (self.retain * angles.len() as f64).ceil() as usize;
        top_rows(angles, share, |_| false)
    }
}

impl Method for MiniCache {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.merge(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        if cache.tokens() - self.done < self.every {
            return Ok(());
        }
        self.merge(cache)
    }

    fn truncated(&mut self, len: usize) {
        self.done = self.done.min(len);
    }

    fn save(&self, state: &mut Vec<u8>) -> Result<(), &'static str> {
        state.extend((self.done as u64).to_le_bytes());
        Ok(())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let done = state.try_into().map_err(|_| "a number of tokens has 8 bytes")?;
        self.done = u64::from_le_bytes(done) as usize;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

/// The rows of `tokens` that both layers still have and do not share yet, by position.
fn rows_of_both(
    cache: &OpenCache<'_>,
    layers: [usize; 2],
    kv_head: usize,
    tokens: &Range<usize>,
) -> Vec<[usize; 2]> {
    let [lower, upper] = layers.map(|layer| {
        let positions = cache.positions(layer, kv_head);
        let rows = (cache.shared_rows(layer, kv_head)..positions.len()).map(|row| (positions[row], row));
        let mut rows: Vec<_> = rows.filter(|(position, _)| tokens.contains(&(*position as usize))).collect();
        rows.sort_unstable();
        rows
    });
    let mut upper = upper.into_iter().peekable();
    let mut both: Vec<[usize; 2]> = Vec::with_capacity(lower.len());
    for (position, row) in lower {
        while upper.next_if(|other| other.0 < position).is_some() {}
        if let Some((_, other)) = upper.next_if(|other| other.0 == position) {
            both.push([row, other]);
        }
    }
    both
}

/// Two vectors, told by one direction.
struct Merged {
    /// Of unit length.
    direction: Vec<f32>,
    /// Of the lower layer's vector and of the upper one's.
    lengths: [f32; 2],
    /// Between the two, in radians.
    angle: f64,
}

/// Merges two vectors: the direction lies `t` of the way from `lower`'s to `upper`'s on the great circle through both.
fn merge(lower: &[f32], upper: &[f32], t: f64) -> Merged {
    // So far from 0 and 180 degrees that the sine is above zero.
    const MARGIN: f64 = 1e-6;
    const SMALLEST_SINE: f64 = 1e-6;
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let lengths = [dot(lower, lower).sqrt(), dot(upper, upper).sqrt()];
    // A vector of zeros has no direction: it takes the other's.
    let per_length = lengths.map(|length| if length > 0.0 { 1.0 / length } else { 0.0 });
    let cosine = dot(lower, upper) * per_length[0] * per_length[1];
    let angle = cosine.clamp(-1.0 + MARGIN, 1.0 - MARGIN).acos();
    let weights = if per_length[0] == 0.0 {
        [0.0, 1.0]
    } else if per_length[1] == 0.0 {
        [1.0, 0.0]
    } else if angle.sin() < SMALLEST_SINE {
        [1.0 - t, t]
    } else {
        [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
    };
    let blend: Vec<f64> = lower
        .iter()
        .zip(upper)
        .map(|(&a, &b)| f64::from(a) * per_length[0] * weights[0] + f64::from(b) * per_length[1] * weights[1])
        .collect();
    let length = blend.iter().map(|x| x * x).sum::<f64>().sqrt();
    let per_length = if length > 0.0 { 1.0 / length } else { 0.0 };
    Merged {
        direction: blend.into_iter().map(|x| (x * per_length) as f32).collect(),
        lengths: lengths.map(|length| length as f32),
        angle,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cosine(a: &[f32], b: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    proptest! {
        #[test]
        fn the_common_direction_lies_between_and_lengths_are_kept(
            a in prop::collection::vec(-4.0f32..4.0, 8), b in prop::collection::vec(-4.0f32..4.0, 8), t in 0.0f64..1.0,
        ) {
            let length = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            prop_assume!(length(&a) > 0.1 && length(&b) > 0.1 && cosine(&a, &b).abs() < 0.999);
            let merged = merge(&a, &b, t);
            prop_assert!((length(&merged.direction) - 1.0).abs() < 1e-6);
            prop_assert!((f64::from(merged.lengths[0]) / length(&a) - 1.0).abs() < 1e-6);
            prop_assert!((f64::from(merged.lengths[1]) / length(&b) - 1.0).abs() < 1e-6);
            let omega = merged.angle;
            prop_assert!((cosine(&a, &b) - omega.cos()).abs() < 1e-6);
            prop_assert!((cosine(&merged.direction, &a) - (t * omega).cos()).abs() < 1e-5);
            prop_assert!((cosine(&merged.direction, &b) - ((1.0 - t) * omega).cos()).abs() < 1e-5);
            // At the ends it is one of the two.
            prop_assert!(cosine(&merge(&a, &b, 0.0).direction, &a) > 1.0 - 1e-6);
            prop_assert!(cosine(&merge(&a, &b, 1.0).direction, &b) > 1.0 - 1e-6);
        }
    }

    #[test]
    fn equal_opposite_and_zero_vectors_give_numbers() {
        let x = [3.0, 0.0, -4.0];
        let same = merge(&x, &x, 0.6);
        assert!(same.direction.iter().zip([0.6, 0.0, -0.8]).all(|(a, b)| (a - b).abs() < 1e-6));
        let opposite = merge(&x, &[-3.0, 0.0, 4.0], 0.6);
        assert!(opposite.direction.iter().all(|x| x.is_finite()));
        let zero = merge(&x, &[0.0; 3], 0.6);
        assert_eq!(zero.lengths, [5.0, 0.0]);
        assert!((zero.direction[0] - 0.6).abs() < 1e-6);
        assert_eq!(merge(&[0.0; 3], &[0.0; 3], 0.6).direction, [0.0; 3]);
    }
}
