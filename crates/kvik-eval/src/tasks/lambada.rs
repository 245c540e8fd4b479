//! LAMBADA: the last word of a passage that cannot be guessed from its last sentence (D. Paperno et al., 2016), in the
//! form without tokenised punctuation that OpenAI made.
//!
//! The passage is prefilled but for its last tokens, which are followed through decode, so that the method is in force
//! when the word comes. It counts when the model would have said every token of it, as in the LM evaluation harness.

use crate::{
    EvalError,
    draw::Draw,
    item::{Forced, Item, Job, Span},
    prompt::Style,
    tasks::{Facet, Kit, Metric, Plan, Task},
};

/// Tokens of the passage that are decoded before the word.
const DECODED_TOKENS: usize = 16;

/// The task `lambada`.
pub(super) struct Lambada;

impl Task for Lambada {
    fn name(&self) -> &'static str {
        "lambada"
    }

    fn about(&self) -> &'static str {
        "the last word of a passage that takes the whole passage to guess (lengths are its own)"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let prompter = &kit.prompter;
        let passages = kit.data.lambada(plan.items)?;
        let mut draw = Draw::new(plan.seed, "lambada", 0);
        let mut items = Vec::new();
        for chosen in draw.distinct(plan.items, passages.len()) {
            let text = passages[chosen].text.trim_end();
            let Some((passage, word)) = text.rsplit_once(char::is_whitespace) else { continue };
            let read = [prompter.opening(Style::Plain), prompter.text(passage)?].concat();
            let word = prompter.text(&format!(" {word}"))?;
            let split = read.len().saturating_sub(DECODED_TOKENS).max(1).min(read.len());
            let words: Vec<&str> = passage.split_whitespace().collect();
            let guess =
                draw.pick(&words).map_or(Ok(Vec::new()), |word| prompter.text(&format!(" {word}")))?;
            let span = Span { start: read.len() - split, tokens: word.len(), guess };
            items.push(Item {
                id: chosen.to_string(),
                length: split,
                depth: None,
                context: read[..split].to_vec(),
                job: Job::Force(Forced {
                    family: "lambada",
                    continuation: [&read[split..], &word].concat(),
                    spans: vec![span],
                }),
            });
        }
        Ok(items)
    }
}
