//! Stop strings over text that arrives in pieces.
//!
//! A stop string may begin in one token and end in a later one, so text that could still turn out to be the beginning
//! of one is held back until it is decided. The stop is the string that is completed first, as if the text came
//! character by character, and of those completed together the longest; so the result does not depend on how the
//! text was cut into pieces. Neither the stop nor what follows it is text.

/// Watches a stream of text for stop strings.
pub(crate) struct StopStrings {
    stops: Vec<String>,
    /// Text that is not yet out: the longest end of what was seen that begins some stop.
    held: String,
}

/// A stop string of a request is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stop string is empty, so it would end every text before it begins: give it a character or leave it out"
)]
pub struct EmptyStopString;

impl StopStrings {
    /// Watches for `stops`; none is fine.
    ///
    /// # Errors
    /// [`EmptyStopString`] when one of them is empty.
    pub(crate) fn new(stops: Vec<String>) -> Result<Self, EmptyStopString> {
        if stops.iter().any(String::is_empty) {
            return Err(EmptyStopString);
        }
        // Room for what is held and a long token, so that streaming does not allocate.
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        Ok(Self { held: String::with_capacity(longest + 256), stops })
    }

    /// Takes the next `piece`, appends to `text` what is decided, and returns the stop string if one is complete.
    /// After that, nothing may be pushed.
    pub(crate) fn push(&mut self, piece: &str, text: &mut String) -> Option<&str> {
        if self.stops.is_empty() {
            text.push_str(piece);
            return None;
        }
        self.held.push_str(piece);
        // The earliest end, and among equals the earliest beginning.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|begin| (begin + stop.len(), begin)))
            .min();
        if let Some((end, begin)) = found {
            text.push_str(&self.held[..begin]);
            let stop = self.stops.iter().find(|stop| **stop == self.held[begin..end]);
            self.held.clear();
            return stop.map(String::as_str);
        }
        let undecided = self.undecided();
        text.push_str(&self.held[..undecided]);
        self.held.drain(..undecided);
        None
    }

    /// The stream has ended: what was held back is text after all.
    pub(crate) fn finish(&mut self, text: &mut String) {
        text.push_str(&self.held);
        self.held.clear();
    }

    /// Where the longest end of `held` starts that a stop string begins with.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.floor_char_boundary(self.held.len().saturating_sub(longest));
        self.held[from..]
            .char_indices()
            .map(|(offset, _)| from + offset)
            .find(|&begin| self.stops.iter().any(|stop| stop.starts_with(&self.held[begin..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, Option<String>) {
        let mut filter = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()).collect()).unwrap();
        let mut text = String::new();
        for piece in pieces {
            if let Some(stop) = filter.push(piece, &mut text) {
                return (text, Some(stop.to_owned()));
            }
        }
        filter.finish(&mut text);
        (text, None)
    }

    /// By definition: the shortest beginning of the text that ends in a stop, and the longest such stop.
    fn by_definition(stops: &[&str], text: &str) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let here =
                stops.iter().filter(|stop| text[..end].ends_with(**stop)).max_by_key(|stop| stop.len());
            if let Some(stop) = here {
                return (text[..end - stop.len()].to_owned(), Some((*stop).to_owned()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        /// A small alphabet with a multi-byte character, so that stops overlap and nest.
        #[test]
        fn any_cutting_gives_the_definition(
            text in "[abé]{0,40}", stops in proptest::collection::vec("[abé]{1,5}", 0..4),
            cuts in proptest::collection::vec(1usize..6, 40),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut rest = text.as_str();
            let pieces: Vec<&str> = cuts.iter().map(|&length| {
                let cut = rest.char_indices().nth(length).map_or(rest.len(), |(at, _)| at);
                let (piece, tail) = rest.split_at(cut);
                rest = tail;
                piece
            }).collect();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(stream(&stops, pieces), by_definition(&stops, &text));
        }

        /// Nothing that is part of the stop is ever shown, and nothing is held that could be shown.
        #[test]
        fn exactly_the_undecided_end_is_held(text in "[ab]{0,30}", stop in "[ab]{1,5}") {
            let mut filter = StopStrings::new(vec![stop.clone()]).unwrap();
            let mut shown = String::new();
            for (end, _) in text.char_indices().map(|(at, c)| (at + c.len_utf8(), c)) {
                if filter.push(&text[end - 1..end], &mut shown).is_some() {
                    break;
                }
                let held = (0..stop.len()).rev().find(|&n| text[..end].ends_with(&stop[..n])).unwrap();
                prop_assert_eq!(&shown, &text[..end - held]);
            }
        }
    }

    #[test]
    fn a_stop_across_tokens_is_found_and_not_shown() {
        assert_eq!(
            stream(&["\n\nUser:"], ["Hi", ".\n", "\nUs", "er: x"]),
            ("Hi.".into(), Some("\n\nUser:".into()))
        );
        assert_eq!(stream(&["\n\nUser:"], ["Hi", ".\n", "\nUs", "ed"]), ("Hi.\n\nUsed".into(), None));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        assert_eq!(StopStrings::new(vec!["a".into(), String::new()]).err(), Some(EmptyStopString));
    }
}
