//! Windows of running text: a part that is prefilled, and a part that is followed token by token.

use crate::{
    EvalError,
    item::{Forced, Item, Job, Span},
    prompt::Style,
    tasks::{Kit, Plan},
};

/// Bytes of English text that a token stands for at most, on average: for guessing how much text is needed.
const BYTES_PER_TOKEN: usize = 5;

/// For each length of `plan` as many windows of articles as it has items.
///
/// Windows lie evenly over the text; their prefilled parts may overlap when the text is short, what is scored never does.
/// The first token behind the prefilled part is led but not scored: its logits come from the prefill, where the method
/// has not acted yet.
pub(super) fn windows(kit: &Kit<'_>, plan: &Plan, task: &'static str) -> Result<Vec<Item>, EvalError> {
    let opening = kit.prompter.opening(Style::Plain);
    let longest = plan.lengths.iter().copied().max().unwrap_or(0);
    let bytes_needed = BYTES_PER_TOKEN * (longest + plan.items * plan.forced_tokens);
    let text = kit.prompter.text(&kit.data.articles(bytes_needed)?)?;
    let mut items = Vec::new();
    for &length in &plan.lengths {
        let read = length.checked_sub(opening.len()).filter(|&read| read > 0);
        let read = read.ok_or_else(|| EvalError::too_short(task, length, opening.len() + 1))?;
        let room = text.len().saturating_sub(read + plan.forced_tokens);
        for index in 0..plan.items {
            let start = room * index / plan.items;
            let middle = start + read;
            let context = [&opening[..], &text[start..middle]].concat();
            let continuation = text[middle..][..plan.forced_tokens].to_vec();
            let spans = (1..continuation.len()).map(|start| Span { start, tokens: 1, guess: Vec::new() });
            items.push(Item {
                id: format!("{length}/{index}"),
                length,
                depth: None,
                context,
                job: Job::Force(Forced { family: "articles", spans: spans.collect(), continuation }),
            });
        }
    }
    Ok(items)
}
