//! The k largest of many logits, without sorting the rest and without allocating.
//!
//! One pass keeps a pool of candidates above a threshold; when the pool is full, a quickselect halves it and raises
//! the threshold to its k-th logit. The pass is a compare per logit almost everywhere: of 262,144 logits in random
//! order about `k ln(262144 / k)` ever enter the pool.

use std::cmp::Ordering;

/// A token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f32,
}

/// The order of candidates: larger logits first, among equals the lower id. Logits are not NaN here.
fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Fills `selected` with the `k` largest `logits`, largest first, ties in the order of their ids.
///
/// A logit of minus infinity or NaN marks a token that cannot follow and is never selected, so there may be fewer.
/// Allocates only where `selected` has not yet room for `min(k + max(k, 64), logits)` candidates.
pub(crate) fn select_top_k(logits: &[f32], k: usize, selected: &mut Vec<Candidate>) {
    selected.clear();
    if k == 0 {
        return;
    }
    let pool = k.saturating_add(k.max(64));
    let mut threshold = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        // Ids rise, so a later logit that equals the threshold loses the tie: strictly greater is right.
        if logit > threshold {
            selected.push(Candidate { id: id as u32, logit });
            if selected.len() == pool {
                selected.select_nth_unstable_by(k - 1, rank);
                selected.truncate(k);
                threshold = selected[k - 1].logit;
            }
        }
    }
    if selected.len() > k {
        selected.select_nth_unstable_by(k - 1, rank);
        selected.truncate(k);
    }
    selected.sort_unstable_by(rank);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Few distinct values make ties; the sizes go well past the pool's minimum.
        #[test]
        fn equals_a_stable_sort(
            values in proptest::collection::vec(prop_oneof![-9i8..9, Just(i8::MIN)], 0..1500), k in 0usize..400,
        ) {
            let logits: Vec<f32> =
                values.iter().map(|&v| if v == i8::MIN { f32::NEG_INFINITY } else { f32::from(v) }).collect();
            let mut expected: Vec<Candidate> = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| logit.is_finite())
                .map(|(id, &logit)| Candidate { id: id as u32, logit })
                .collect();
            expected.sort_by(|a, b| b.logit.total_cmp(&a.logit));
            expected.truncate(k);
            let mut selected = Vec::new();
            select_top_k(&logits, k, &mut selected);
            prop_assert_eq!(selected, expected);
        }
    }

    #[test]
    fn not_a_number_is_never_selected() {
        let mut selected = Vec::new();
        select_top_k(&[f32::NAN, 1.0, f32::NAN, 2.0], 4, &mut selected);
        assert_eq!(selected.iter().map(|c| c.id).collect::<Vec<_>>(), [3, 1]);
    }
}
