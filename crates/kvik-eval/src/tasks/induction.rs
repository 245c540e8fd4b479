//! The rule that copying and recalling need: what followed last time follows again.
//!
//! Attention heads that do this are called induction heads (C. Olsson et al., "In-context Learning and Induction Heads",
//! 2022). As a solver it shows that the answers of `copy` and `recall` are in the text that was read.

/// The token that followed where the longest end of `read` stood before, the latest such place; `None` when its last
/// token never did.
pub fn next_by_induction(read: &[u32]) -> Option<u32> {
    let last = read.len().checked_sub(1)?;
    let mut best: Option<(usize, usize)> = None;
    for at in (0..last).rev() {
        let same = (0..=at).take_while(|back| read[at - back] == read[last - back]).count();
        if same > best.map_or(0, |(length, _)| length) {
            best = Some((same, at));
        }
    }
    best.map(|(_, at)| read[at + 1])
}

#[cfg(test)]
mod tests {
    use super::next_by_induction;

    #[test]
    fn the_longest_match_decides_and_the_latest_of_several() {
        assert_eq!(next_by_induction(&[1, 2, 3, 9, 2, 4, 1, 2]), Some(3));
        assert_eq!(next_by_induction(&[2, 3, 2, 4, 2]), Some(4));
        assert_eq!(next_by_induction(&[1, 2, 3]), None);
        assert_eq!(next_by_induction(&[]), None);
    }
}
