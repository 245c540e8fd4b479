//! Copying: a list of random words, and then a piece of it again.
//!
//! The prompt ends with the first words of a piece of the list; the rest of the piece is followed token by token, and a
//! token counts as right when the model would have said it. Any model with induction heads can do this, however small,
//! and it needs every token of the piece: a cache that dropped some of them shows it at once.

use crate::{
    EvalError,
    draw::Draw,
    item::{Forced, Item, Job, Span},
    prompt::Style,
    tasks::{Facet, Kit, Metric, Plan, Task},
    words,
};

/// Tokens of the piece that stand in the prompt, to say which piece it is.
const LEAD_TOKENS: usize = 16;

/// The task `copy`.
pub(super) struct Copy;

impl Task for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn about(&self) -> &'static str {
        "repeating a piece of a list of random words: tokens that are copied right"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Length]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let opening = kit.prompter.opening(Style::Plain);
        let gap = kit.prompter.text("\n\n")?;
        let nouns = words::nouns();
        let nouns = nouns.iter().map(|noun| kit.prompter.text(&format!(" {noun}")));
        let nouns: Vec<Vec<u32>> = nouns.collect::<Result<_, _>>()?;
        let mut items = Vec::new();
        for &length in &plan.lengths {
            let around = opening.len() + gap.len() + LEAD_TOKENS;
            let piece = LEAD_TOKENS + plan.forced_tokens;
            let list_tokens = length.checked_sub(around).filter(|&tokens| tokens >= piece);
            let list_tokens =
                list_tokens.ok_or_else(|| EvalError::too_short(self.name(), length, around + piece))?;
            for index in 0..plan.items {
                let mut draw = Draw::new(plan.seed, &format!("copy/{length}"), index as u64);
                let mut list: Vec<u32> = Vec::with_capacity(list_tokens + 8);
                while list.len() < list_tokens {
                    list.extend_from_slice(&nouns[draw.below(nouns.len())]);
                }
                list.truncate(list_tokens);
                let start = (list_tokens - piece) * index / (plan.items - 1).max(1);
                let (lead, continuation) = list[start..][..piece].split_at(LEAD_TOKENS);
                // The first token's logits come from the prefill.
                let spans = (1..continuation.len()).map(|start| Span {
                    start,
                    tokens: 1,
                    guess: vec![list[draw.below(list.len())]],
                });
                items.push(Item {
                    id: format!("{length}/{index}"),
                    length,
                    depth: Some(start as f64 / list_tokens as f64),
                    context: [&opening[..], &list, &gap, lead].concat(),
                    job: Job::Force(Forced {
                        family: "copy",
                        spans: spans.collect(),
                        continuation: continuation.to_vec(),
                    }),
                });
            }
        }
        Ok(items)
    }
}
