//! Associative recall: a list of words with numbers, and then some of the words again.
//!
//! Every line of the prompt pairs a word with four digits. Behind it the lines of a few words are followed again, and one
//! counts as right when the model would have said all of its digits. Nothing in the prompt says which words will come, so
//! a method that chooses by the prompt's last tokens is at its weakest here (S. Arora et al., "Zoology", 2023, uses the
//! same form on small models).

use crate::{
    EvalError,
    draw::Draw,
    item::{Forced, Item, Job, Span},
    prompt::Style,
    tasks::{Facet, Kit, Metric, Plan, Task, fit::most_that_fit},
    words,
};

/// Digits of each number.
const DIGITS: u32 = 4;
/// Lines that are asked for again.
const QUERIES: usize = 8;

/// The task `recall`.
pub(super) struct Recall;

impl Task for Recall {
    fn name(&self) -> &'static str {
        "recall"
    }

    fn about(&self) -> &'static str {
        "associative recall: numbers that were paired with words, asked for one by one"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Length]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let prompter = &kit.prompter;
        let opening = prompter.opening(Style::Plain);
        let mut items = Vec::new();
        for &length in &plan.lengths {
            for index in 0..plan.items {
                let mut draw = Draw::new(plan.seed, &format!("recall/{length}"), index as u64);
                let mut pairs = Vec::new();
                for key in words::different_nouns(words::nouns().len(), &mut draw) {
                    let value = prompter.text(&format!(" {}", draw.number(DIGITS)))?;
                    pairs.push((prompter.text(&format!("\n{key} ="))?, value));
                }
                let too_short = || EvalError::too_short(self.name(), length, opening.len() + 10 * QUERIES);
                let room = length.checked_sub(opening.len()).ok_or_else(too_short)?;
                let written = most_that_fit(room, QUERIES, pairs.len(), |count| {
                    let lines = pairs[..count].iter().flat_map(|(key, value)| key.iter().chain(value));
                    Ok((lines.copied().collect(), count))
                })?;
                let (list, count) = written.ok_or_else(too_short)?;
                if count == pairs.len() {
                    let reason = "there are only 1,500 words to pair";
                    return Err(EvalError::LengthTooLong { task: self.name().to_owned(), length, reason });
                }
                let padding = prompter.padding(length - opening.len() - list.len());

                let (mut continuation, mut spans) = (Vec::new(), Vec::new());
                for asked in draw.distinct(QUERIES, count) {
                    let (key, value) = &pairs[asked];
                    continuation.extend_from_slice(key);
                    let guess = pairs[draw.below(count)].1.clone();
                    spans.push(Span { start: continuation.len(), tokens: value.len(), guess });
                    continuation.extend_from_slice(value);
                }
                items.push(Item {
                    id: format!("{length}/{index}"),
                    length,
                    depth: None,
                    // Padding in front: behind the list it would end the pattern of its lines.
                    context: [opening.clone(), padding, list].concat(),
                    job: Job::Force(Forced { family: "recall", continuation, spans }),
                });
            }
        }
        Ok(items)
    }
}
