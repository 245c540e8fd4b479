//! Rotary position embedding (Su et al. 2021) of cached keys: by a table of cosines and sines, for keys that are stored before
//! rotation and for methods that must undo or redo it.

use std::{ops::Range, sync::Arc};

use super::{
    TileShape,
    tile::{GROUP_TOKENS, Positions, from_bf16, to_bf16},
};

/// Which dims of a head turn against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairLayout {
    /// Dim `i` and dim `i + n`: Hugging Face's layout.
    Halves,
    /// Dims `2i` and `2i + 1`: the layout of Llama models in GGUF files.
    Neighbours,
}

/// How the keys of a layer were rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Radians per position, `[pairs]`: the first `2 · pairs` dims of a head turn.
    pub frequencies: Vec<f32>,
    /// Factor on cosine and sine.
    pub factor: f32,
    /// Which dims turn together.
    pub layout: PairLayout,
}

impl Rotary {
    /// Cosine and sine of a pair at `position`, the factor applied.
    pub fn angle(&self, position: u32, pair: usize) -> (f32, f32) {
        // The product is rounded to f32 as the reference implementations do, the functions are then exact.
        let (sin, cos) = f64::from(position as f32 * self.frequencies[pair]).sin_cos();
        (cos as f32 * self.factor, sin as f32 * self.factor)
    }

    /// The dims of a pair.
    fn dims(&self, pair: usize) -> (usize, usize) {
        match self.layout {
            PairLayout::Halves => (pair, pair + self.frequencies.len()),
            PairLayout::Neighbours => (2 * pair, 2 * pair + 1),
        }
    }

    /// Turns `head` (`[head_dim]`) as a token at `position`.
    pub fn rotate(&self, head: &mut [f32], position: u32) {
        for pair in 0..self.frequencies.len() {
            let (a, b) = self.dims(pair);
            let (cos, sin) = self.angle(position, pair);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }

    /// Undoes [`Self::rotate`].
    pub fn unrotate(&self, head: &mut [f32], position: u32) {
        let square = self.factor * self.factor;
        for pair in 0..self.frequencies.len() {
            let (a, b) = self.dims(pair);
            let (cos, sin) = self.angle(position, pair);
            let (x, y) = (head[a] * cos + head[b] * sin, head[b] * cos - head[a] * sin);
            (head[a], head[b]) = (x / square, y / square);
        }
    }

    /// Cosines and sines of all pairs at each of `positions`, `[positions, pairs]`: what [`Self::rotate_by`] takes.
    pub fn angles(&self, positions: Range<u32>) -> Vec<(f32, f32)> {
        let pairs = 0..self.frequencies.len();
        positions.flat_map(|position| pairs.clone().map(move |pair| self.angle(position, pair))).collect()
    }

    /// [`Self::rotate`] by a table: `angles` are those of the token's position, `[pairs]`.
    pub fn rotate_by(&self, head: &mut [f32], angles: &[(f32, f32)]) {
        for (pair, &(cos, sin)) in angles.iter().enumerate() {
            let (a, b) = self.dims(pair);
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }

    /// [`Self::unrotate`] by a table.
    pub fn unrotate_by(&self, head: &mut [f32], angles: &[(f32, f32)]) {
        let square = self.factor * self.factor;
        for (pair, &(cos, sin)) in angles.iter().enumerate() {
            let (a, b) = self.dims(pair);
            let (x, y) = (head[a] * cos + head[b] * sin, head[b] * cos - head[a] * sin);
            (head[a], head[b]) = (x / square, y / square);
        }
    }

    /// Turns the first `len` keys of a tile, each by its position.
    pub(super) fn rotate_tile(
        &self,
        shape: TileShape,
        len: usize,
        positions: Positions<'_>,
        keys: &mut [u16],
    ) {
        for row in 0..len {
            let position = positions.of(row);
            self.turn_row(shape, row, keys, |pair| self.angle(position, pair));
        }
    }

    /// Turns the key in slot `row` of a tile by the cosine and sine that `angle` has for each pair.
    fn turn_row(&self, shape: TileShape, row: usize, keys: &mut [u16], angle: impl Fn(usize) -> (f32, f32)) {
        let group = row / GROUP_TOKENS * GROUP_TOKENS * 2 * shape.key_pairs();
        let place = |dim: usize| group + dim / 2 * 2 * GROUP_TOKENS + row % GROUP_TOKENS * 2 + dim % 2;
        for pair in 0..self.frequencies.len() {
            let (a, b) = self.dims(pair);
            let (a, b) = (place(a), place(b));
            let (cos, sin) = angle(pair);
            let (x, y) = (from_bf16(keys[a]), from_bf16(keys[b]));
            keys[a] = to_bf16(x * cos - y * sin);
            keys[b] = to_bf16(y * cos + x * sin);
        }
    }
}

/// Values of a digit of a number of positions.
const DIGIT: usize = 256;

/// Rotations by whole numbers of positions up to 2²⁴, without the factor: what moves keys that are rotated already. A rotation is
/// put together from those of the number's three digits, so that none asks for a cosine.
#[derive(Debug)]
pub struct Turns {
    rotary: Arc<Rotary>,
    /// Cosine and sine, `[digit][value of the digit][pair]`.
    digits: [Vec<(f32, f32)>; 3],
}

impl Turns {
    /// The rotations of `rotary`.
    pub fn new(rotary: Arc<Rotary>) -> Self {
        let digits = [0, 1, 2].map(|digit| {
            let unit = DIGIT.pow(digit) as f64;
            let of_value = |value: usize| {
                rotary.frequencies.iter().map(move |&frequency| {
                    let (sin, cos) = (value as f64 * unit * f64::from(frequency)).sin_cos();
                    (cos as f32, sin as f32)
                })
            };
            (0..DIGIT).flat_map(of_value).collect()
        });
        Self { rotary, digits }
    }

    /// What it was made of.
    pub fn rotary(&self) -> &Arc<Rotary> {
        &self.rotary
    }

    /// Turns the first keys of a tile, each by its entry of `by`.
    pub(super) fn turn_tile(&self, shape: TileShape, by: &[u32], keys: &mut [u16]) {
        let pairs = self.rotary.frequencies.len();
        let of_digit = |digit: usize, value: u32| {
            let value = value as usize >> (8 * digit) & (DIGIT - 1);
            (value > 0).then(|| &self.digits[digit][value * pairs..][..pairs])
        };
        for (row, &by) in by.iter().enumerate().filter(|(_, by)| **by > 0) {
            let [low, middle, high] = [0, 1, 2].map(|digit| of_digit(digit, by));
            let both = |angle: (f32, f32), more: Option<&[(f32, f32)]>, pair: usize| {
                more.map_or(angle, |more| {
                    let ((cos, sin), (c, s)) = (angle, more[pair]);
                    (cos * c - sin * s, sin * c + cos * s)
                })
            };
            self.rotary.turn_row(shape, row, keys, |pair| {
                let angle = low.map_or((1.0, 0.0), |low| low[pair]);
                both(both(angle, middle, pair), high, pair)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::PlaneKind;

    #[test]
    fn unrotate_undoes_rotate_with_a_factor_and_for_both_layouts() {
        for layout in [PairLayout::Halves, PairLayout::Neighbours] {
            let rotary = Rotary { frequencies: vec![1.0, 0.3, 0.01], factor: 1.3, layout };
            let head: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
            let mut turned = head.clone();
            rotary.rotate(&mut turned, 1234);
            assert_eq!(turned[6..], head[6..], "dims beyond the pairs stay");
            assert!((turned[0] - head[0]).abs() > 1e-2);
            let angles = rotary.angles(1230..1236);
            let mut by_table = head.clone();
            rotary.rotate_by(&mut by_table, &angles[4 * 3..5 * 3]);
            assert_eq!(by_table, turned);
            rotary.unrotate(&mut turned, 1234);
            rotary.unrotate_by(&mut by_table, &angles[4 * 3..5 * 3]);
            assert_eq!(by_table, turned);
            for (a, b) in turned.iter().zip(&head) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn keys_that_turn_on_stand_where_a_later_position_had_put_them() {
        let shape = TileShape { key_dim: 8, value_dim: 8 };
        for layout in [PairLayout::Halves, PairLayout::Neighbours] {
            let rotary = Arc::new(Rotary { frequencies: vec![1.0, 0.3, 0.01], factor: 1.3, layout });
            let turns = Turns::new(Arc::clone(&rotary));
            let by = [0, 1, 255, 256, 1000, 70_001, 300];
            let mut keys = vec![0; shape.key_len()];
            let head: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
            for slot in 0..by.len() {
                let mut key = head.clone();
                rotary.rotate(&mut key, 7);
                shape.write_row(PlaneKind::Keys, &mut keys, slot, &key);
            }
            let before = keys.clone();
            turns.turn_tile(shape, &by, &mut keys);
            for (slot, by) in by.into_iter().enumerate() {
                let (mut got, mut want) = (vec![0.0; 8], head.clone());
                shape.read_row(PlaneKind::Keys, &keys, slot, &mut got);
                rotary.rotate(&mut want, 7 + by);
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 0.06, "by {by}: {got} {want}");
                }
            }
            let key = |keys: &[u16]| {
                let mut key = vec![0.0; 8];
                shape.read_row(PlaneKind::Keys, keys, 0, &mut key);
                key
            };
            assert_eq!(key(&keys), key(&before), "what does not turn keeps its bits");
        }
    }
}
