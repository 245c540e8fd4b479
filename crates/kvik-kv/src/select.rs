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

/// Rows that stay when the `sinks` with the lowest positions and the `recent` with the highest do, in rising order. Rows need not
/// be in the order of their positions: evicted rows leave slots that later ones take.
pub fn sinks_and_recent(positions: &[u32], sinks: usize, recent: usize) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..positions.len() as u32).collect();
    if rows.len() <= sinks.saturating_add(recent) {
        return rows;
    }
    rows.sort_unstable_by_key(|&row| positions[row as usize]);
    rows.drain(sinks..rows.len() - recent);
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_and_recent_rows_go_by_position_wherever_they_lie() {
        assert_eq!(sinks_and_recent(&[0, 9, 2, 3, 8, 5], 1, 2), [0, 1, 4]);
        assert_eq!(sinks_and_recent(&[0, 1, 2], 1, 2), [0, 1, 2]);
        assert_eq!(sinks_and_recent(&[3, 1, 2, 0], 0, 1), [0]);
    }
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
