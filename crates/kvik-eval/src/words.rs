//! Words to make keys, names and lists of.
//!
//! RULER builds its keys from the adjectives and nouns of the `wonderwords` package; a part of those lists comes with
//! Kvik.

use crate::draw::Draw;

const NOUNS: &str = include_str!("../../../data/words/nouns.txt");
const ADJECTIVES: &str = include_str!("../../../data/words/adjectives.txt");

/// 1,500 English nouns of 3 to 8 letters, in alphabetical order.
pub fn nouns() -> Vec<&'static str> {
    NOUNS.lines().collect()
}

/// `count` different keys such as `quiet-lantern`, all different also in their nouns; fewer when the nouns run out.
pub fn keys(count: usize, draw: &mut Draw) -> Vec<String> {
    let (adjectives, nouns): (Vec<&str>, Vec<&str>) = (ADJECTIVES.lines().collect(), nouns());
    draw.distinct(count, nouns.len())
        .into_iter()
        .map(|noun| format!("{}-{}", adjectives[draw.below(adjectives.len())], nouns[noun]))
        .collect()
}

/// `count` different nouns in random order; fewer when they run out.
pub fn different_nouns(count: usize, draw: &mut Draw) -> Vec<&'static str> {
    let nouns = nouns();
    draw.distinct(count, nouns.len()).into_iter().map(|noun| nouns[noun]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_different_and_plain() {
        let all: HashSet<&str> = nouns().into_iter().collect();
        assert_eq!(all.len(), 1500);
        assert!(nouns().iter().all(|noun| noun.bytes().all(|b| b.is_ascii_lowercase())));
        let keys = keys(1500, &mut Draw::new(1, "keys", 0));
        let nouns: HashSet<&str> = keys.iter().filter_map(|key| Some(key.split_once('-')?.1)).collect();
        assert_eq!(nouns.len(), 1500);
    }
}
