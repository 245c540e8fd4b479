//! Selectors: which rows of a head stay.

/// Rows `0..scores.len()` that stay, in rising order: those that `pinned` names, and of the others those with the highest
/// scores, `keep` rows in all. Among equal scores the earlier row stays.
pub fn top_rows(scores: &[f32], keep: usize, pinned: impl Fn(usize) -> bool) -> Vec<u32> {
    let (mut rows, mut candidates): (Vec<u32>, Vec<u32>) =
        (0..scores.len() as u32).partition(|&row| pinned(row as usize));
    let keep = keep.saturating_sub(rows.len()).min(candidates.len());
    if keep > 0 && keep < candidates.len() {
        candidates.select_nth_unstable_by(keep - 1, |&a, &b| {
            scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
        });
    }
    rows.extend_from_slice(&candidates[..keep]);
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_best_rows_stay_with_ties_to_the_earlier(
            scores in prop::collection::vec(0u8..6, 0..40), keep in 0usize..50, pins in 0usize..8,
        ) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let pinned = |row: usize| row + pins >= scores.len();
            let rows = top_rows(&scores, keep, pinned);
            // Brute force: sort all others by score, then by age.
            let mut others: Vec<usize> = (0..scores.len()).filter(|&row| !pinned(row)).collect();
            others.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            let pinned_rows = scores.len().min(pins);
            let mut want: Vec<u32> = (scores.len() - pinned_rows..scores.len()).map(|row| row as u32).collect();
            want.extend(others.iter().take(keep.saturating_sub(pinned_rows)).map(|&row| row as u32));
            want.sort_unstable();
            prop_assert_eq!(rows, want);
        }
    }
}
