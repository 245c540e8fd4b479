//! Finding the tokens that are written out in a text: `<|im_start|>`, `<table>`, a run of newlines.
//!
//! Special tokens are cut out of a text before anything else looks at it. Where several could match, the longest goes
//! first wherever it stands, then the next longest in what is left, as if one searched the whole text for one token
//! after the other (which is what llama.cpp does, and what this module must equal). With thousands of special tokens
//! that search is too slow; instead every position offers its longest match, a heap takes the longest of all, and a
//! position whose match was in the way offers its next shorter one.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range};

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// Ordinary text, never empty.
    Text(&'t str),
    /// A special token that was written out.
    Token(u32),
}

/// A token that is recognised in text.
pub(super) struct SpecialToken {
    /// The token's number.
    pub(super) id: u32,
    /// How it is written; never empty.
    pub(super) text: Box<str>,
    /// Whether it is recognised only where control tokens may be written out.
    pub(super) control: bool,
    /// Whether it swallows the white space behind it.
    pub(super) strips_right: bool,
}

/// All tokens that are recognised in text.
pub(super) struct SpecialTokens {
    /// Sorted by text.
    tokens: Vec<SpecialToken>,
    /// The tokens that start with each byte.
    starting_with: Vec<Range<usize>>,
}

impl SpecialTokens {
    /// Sorts `tokens` for the search.
    pub(super) fn new(mut tokens: Vec<SpecialToken>) -> Self {
        tokens.sort_by(|a, b| a.text.cmp(&b.text));
        let first = |token: &SpecialToken| token.text.as_bytes()[0];
        let starting_with = (0..=u8::MAX).map(|byte| {
            let start = tokens.partition_point(|token| first(token) < byte);
            start..tokens.partition_point(|token| first(token) <= byte)
        });
        Self { starting_with: starting_with.collect(), tokens }
    }

    /// Cuts `text` into special tokens and what lies between them. Control tokens are recognised if `parse_control`.
    pub(super) fn partition<'t>(&self, text: &'t str, parse_control: bool) -> Vec<Fragment<'t>> {
        let bytes = text.as_bytes();
        // The heap's order is the search's: longest token first, among equals the lower number, then left to right.
        let offer = |start: usize, below: usize| {
            let index = self.longest_match(&bytes[start..], below, parse_control)?;
            let token = &self.tokens[index];
            Some((token.text.len(), Reverse(token.id), Reverse(start), index))
        };
        let mut offers: BinaryHeap<_> =
            (0..bytes.len()).filter_map(|start| offer(start, usize::MAX)).collect();
        if offers.is_empty() {
            return if text.is_empty() { Vec::new() } else { vec![Fragment::Text(text)] };
        }

        let mut taken = vec![false; bytes.len()];
        let mut found = Vec::new();
        while let Some((len, _, Reverse(start), index)) = offers.pop() {
            if taken[start] {
                continue;
            }
            // What was taken earlier is no shorter than this, so it cannot lie strictly inside.
            if taken[start + len - 1] {
                offers.extend(offer(start, len));
                continue;
            }
            let mut end = start + len;
            if self.tokens[index].strips_right {
                end +=
                    bytes[end..].iter().zip(&taken[end..]).take_while(|(b, t)| is_space(**b) && !**t).count();
            }
            taken[start..end].fill(true);
            found.push((start, end, self.tokens[index].id));
        }

        found.sort_unstable();
        let mut fragments = Vec::with_capacity(2 * found.len() + 1);
        let mut done = 0;
        for (start, end, id) in found {
            if done < start {
                fragments.push(Fragment::Text(&text[done..start]));
            }
            fragments.push(Fragment::Token(id));
            done = end;
        }
        if done < text.len() {
            fragments.push(Fragment::Text(&text[done..]));
        }
        fragments
    }

    /// The longest token shorter than `below` bytes with which `text` starts, as an index into the sorted tokens.
    fn longest_match(&self, text: &[u8], below: usize, parse_control: bool) -> Option<usize> {
        let mut candidates = self.starting_with[*text.first()? as usize].clone();
        let mut longest = None;
        // Invariant: the candidates are the tokens that start with the first `len` bytes of the text.
        for len in 1..below {
            // The token that is no longer than that is the first of them.
            while let Some(token) = self.tokens.get(candidates.start)
                && !candidates.is_empty()
                && token.text.len() == len
            {
                if parse_control || !token.control {
                    longest = Some(candidates.start);
                }
                candidates.start += 1;
            }
            let Some(&byte) = text.get(len) else { break };
            let rest = &self.tokens[candidates.clone()];
            let lower = rest.partition_point(|token| token.text.as_bytes()[len] < byte);
            let upper = rest.partition_point(|token| token.text.as_bytes()[len] <= byte);
            candidates = candidates.start + lower..candidates.start + upper;
            if candidates.is_empty() {
                break;
            }
        }
        longest
    }
}

/// White space as C's `isspace` sees it.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens(texts: &[&str]) -> Vec<SpecialToken> {
        let token = |(id, text): (usize, &&str)| SpecialToken {
            id: id as u32,
            text: (*text).into(),
            control: text.starts_with('<'),
            strips_right: text.ends_with('>'),
        };
        texts.iter().enumerate().map(token).collect()
    }

    /// The definition: search the text for one token after the other, longest first.
    fn one_after_the_other<'t>(
        tokens: &[SpecialToken],
        text: &'t str,
        parse_control: bool,
    ) -> Vec<Fragment<'t>> {
        let mut order: Vec<_> = tokens.iter().filter(|token| parse_control || !token.control).collect();
        order.sort_by_key(|token| (Reverse(token.text.len()), token.id));
        let mut fragments = vec![Fragment::Text(text)];
        for token in order {
            let mut next = Vec::new();
            for fragment in fragments {
                let Fragment::Text(mut rest) = fragment else {
                    next.push(fragment);
                    continue;
                };
                while let Some((left, right)) = rest.split_once(&*token.text) {
                    next.extend([Fragment::Text(left), Fragment::Token(token.id)]);
                    rest = if token.strips_right { right.trim_start_matches(' ') } else { right };
                }
                next.push(Fragment::Text(rest));
            }
            fragments = next;
        }
        fragments.retain(|fragment| *fragment != Fragment::Text(""));
        fragments
    }

    proptest! {
        #[test]
        fn finds_what_searching_token_by_token_finds(
            texts in prop::collection::btree_set("<?[ab ]{1,4}>?", 0..8),
            text in "([ab <>]|é){0,40}",
            parse_control: bool,
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let expected_tokens = tokens(&texts);
            let special = SpecialTokens::new(tokens(&texts));
            prop_assert_eq!(
                special.partition(&text, parse_control),
                one_after_the_other(&expected_tokens, &text, parse_control)
            );
        }
    }

    #[test]
    fn a_long_run_of_nested_tokens_takes_little_time() {
        let runs: Vec<String> = (1..=31).map(|n| "\n".repeat(n)).collect();
        let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
        let special = SpecialTokens::new(tokens(&runs));
        let text = "\n".repeat(31 * 20_000 + 7);
        let fragments = special.partition(&text, false);
        assert_eq!(fragments.len(), 20_001);
        assert_eq!(fragments.last(), Some(&Fragment::Token(6)));
    }
}
