//! Landmarks: a mean key for each chunk of tokens, by which a query finds the chunks that it asks for.
//!
//! A chunk that its landmark describes badly, by the smallest cosine to one of its keys, is an outlier, for a method to keep as it
//! is. The others are candidates; a head has slots for those that were chosen last, so that only new ones have to be brought.

use std::sync::Arc;

use kvik_kernels::{
    Isa,
    attention::{AttentionShape, PlaneKind, TILE_TOKENS, TileShape, pack_query, scores},
};

use crate::{RunCopy, select::top_rows};

/// In the place of a candidate or a slot: none.
const NONE: u32 = u32::MAX;

/// The chunks of a head's new part: which stay exact, and the landmarks of the others (`[n, dim]`).
pub(crate) struct Chunks {
    pub(crate) outliers: Vec<u32>,
    pub(crate) others: Vec<u32>,
    pub(crate) landmarks: Vec<f32>,
}

/// Landmarks of the chunks of `chunk` rows of `keys` (`[rows, dim]`, rotated), and which chunks they describe worst.
pub(crate) fn chunks(keys: &[f32], dim: usize, chunk: usize, outliers: usize) -> Chunks {
    let all = keys.chunks_exact(chunk * dim);
    let mut landmarks = Vec::with_capacity(keys.len() / chunk);
    let mut badness = Vec::with_capacity(all.len());
    for rows in all {
        let start = landmarks.len();
        landmarks.resize(start + dim, 0f32);
        let landmark = &mut landmarks[start..];
        for key in rows.chunks_exact(dim) {
            landmark.iter_mut().zip(key).for_each(|(mean, x)| *mean += x);
        }
        landmark.iter_mut().for_each(|mean| *mean /= chunk as f32);
        let least = rows.chunks_exact(dim).map(|key| cosine(landmark, key)).fold(f32::INFINITY, f32::min);
        badness.push(-least);
    }
    let outliers = top_rows(&badness, outliers.min(badness.len()), |_| false);
    let others: Vec<u32> = (0..badness.len() as u32).filter(|c| outliers.binary_search(c).is_err()).collect();
    let kept = others.iter().flat_map(|&chunk| &landmarks[chunk as usize * dim..][..dim]).copied().collect();
    Chunks { outliers, others, landmarks: kept }
}

/// What a head chooses from, and what it has chosen.
#[derive(Clone)]
pub(crate) struct Landmarks {
    /// First row of each candidate.
    rows: Arc<Vec<u32>>,
    /// Key planes of tiles whose rows are the candidates' landmarks.
    planes: Arc<Vec<u16>>,
    /// The candidate in each slot, or none.
    slots: Vec<u32>,
}

impl Landmarks {
    /// Nothing to choose from yet.
    pub(crate) fn empty(slots: usize) -> Self {
        Self { rows: Arc::default(), planes: Arc::default(), slots: vec![NONE; slots] }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.rows.len() + self.slots.len()) + 2 * self.planes.len()
    }

    /// Adds the chunks of a part that begins at row `first`; no slot holds a candidate then.
    pub(crate) fn extend(&mut self, shape: TileShape, first: usize, chunk: usize, new: &Chunks) {
        let rows = Arc::make_mut(&mut self.rows);
        let planes = Arc::make_mut(&mut self.planes);
        let plane_len = shape.key_len();
        for (&index, landmark) in new.others.iter().zip(new.landmarks.chunks_exact(shape.key_dim)) {
            let at = rows.len();
            planes.resize((at / TILE_TOKENS + 1) * plane_len, 0);
            let plane = &mut planes[at / TILE_TOKENS * plane_len..];
            shape.write_row(PlaneKind::Keys, plane, at % TILE_TOKENS, landmark);
            rows.push((first + index as usize * chunk) as u32);
        }
        self.slots.fill(NONE);
    }

    /// The candidates with the largest probability among the packed queries, as many as there are slots, in rising order.
    pub(crate) fn best(&self, shape: TileShape, packed: &[u32]) -> Vec<u32> {
        let (queries, candidates) = (packed.len() / shape.key_pairs(), self.rows.len());
        let mut all = vec![0f32; queries * candidates];
        let mut some = vec![0f32; queries * TILE_TOKENS];
        for (tile, plane) in self.planes.chunks_exact(shape.key_len()).enumerate() {
            scores(Isa::active(), shape, packed, plane, &mut some);
            let len = (candidates - tile * TILE_TOKENS).min(TILE_TOKENS);
            for (all, some) in all.chunks_exact_mut(candidates).zip(some.chunks_exact(TILE_TOKENS)) {
                all[tile * TILE_TOKENS..][..len].copy_from_slice(&some[..len]);
            }
        }
        // The largest probability has the largest logarithm, which does not underflow.
        let mut best = vec![f32::NEG_INFINITY; candidates];
        for scores in all.chunks_exact(candidates.max(1)) {
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
            let log_sum_exp = most + sum.ln();
            best.iter_mut().zip(scores).for_each(|(best, score)| *best = best.max(score - log_sum_exp));
        }
        top_rows(&best, self.slots.len(), |_| false)
    }

    /// Gives the slots of candidates that are not among `best` to those that have none: what is to be copied.
    pub(crate) fn replace(&mut self, kv_head: usize, chunk: usize, best: &[u32]) -> Vec<RunCopy> {
        let mut missing = vec![false; self.rows.len()];
        best.iter().for_each(|&candidate| missing[candidate as usize] = true);
        let mut free = Vec::new();
        for (slot, &candidate) in self.slots.iter().enumerate() {
            match missing.get_mut(candidate as usize) {
                Some(missing) if *missing => *missing = false,
                _ => free.push(slot),
            }
        }
        let missing = best.iter().filter(|&&candidate| missing[candidate as usize]);
        let copies = missing.zip(free).map(|(&candidate, slot)| {
            self.slots[slot] = candidate;
            RunCopy { kv_head, to: slot * chunk, from: self.rows[candidate as usize] as usize }
        });
        copies.collect()
    }
}

/// The queries of a KV head's group, `[rows · group, key_pairs]`.
pub(crate) fn pack_group(shape: &AttentionShape, kv_head: usize, queries: &[f32]) -> Vec<u32> {
    let (group, dim, pairs) = (shape.group(), shape.tile.key_dim, shape.tile.key_pairs());
    let rows = queries.chunks_exact(shape.heads * dim);
    let mut packed = vec![0u32; rows.len() * group * pairs];
    let own = rows.flat_map(|row| row[kv_head * group * dim..][..group * dim].chunks_exact(dim));
    for (query, packed) in own.zip(packed.chunks_exact_mut(pairs)) {
        pack_query(query, shape.scale, packed);
    }
    packed
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f32::MIN_POSITIVE)
}
