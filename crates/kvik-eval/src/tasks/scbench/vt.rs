//! Multi-hop tracing: one chain of variables for each question, all scattered over one noise.

use super::{Page, Question, Shared};
use crate::{
    EvalError,
    draw::Draw,
    haystack::Haystack,
    tasks::ruler::{chains as make_chains, follow, needles},
};

/// Variables of a chain.
const NAMES: usize = 3;

const INSTRUCTION: &str =
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";

/// A chain for every turn.
pub(super) fn chains(page: &Page<'_>, draw: &mut Draw) -> Result<Shared, EvalError> {
    let chains = make_chains(page.turns, NAMES, draw);
    let needles = needles(page.prompter, &chains, draw)?;
    let all: Vec<&String> = chains.iter().flat_map(|chain| &chain.names).collect();
    let questions: Vec<Question> = chains
        .iter()
        .map(|chain| Question {
            text: format!(
                "\n\nQuestion: Find all variables that are assigned the value {} in the text above. Answer: {NAMES} variables \
                 are assigned the value {}, they are:",
                chain.value, chain.value
            ),
            answer: format!("{}.", chain.names.join(", ")),
            references: chain.names.clone(),
            guess: draw.distinct(NAMES, all.len()).into_iter().map(|at| all[at].as_str()).collect::<Vec<_>>().join(", "),
        })
        .collect();
    let head = [page.opening(), page.prompter.text(INSTRUCTION)?].concat();
    let room = questions.first().map(|first| page.room(first)).transpose()?.unwrap_or(page.length);
    let noise = Haystack::of_noise(page.prompter)?;
    let hidden: usize = needles.iter().map(|needle| needle.tokens.len()).sum();
    let body = room.checked_sub(head.len()).and_then(|tokens| noise.fill(tokens, &needles, draw));
    let body = body.ok_or_else(|| page.too_short(page.length - room + head.len() + hidden))?;
    Ok(Shared { context: [head, body].concat(), questions })
}

/// Follows the chain of the value that `question` asks for.
pub(super) fn solve(context: &str, question: &str) -> Option<String> {
    let value = question.split_once("the value ")?.1.split_whitespace().next()?;
    Some(follow(context.split_once("\n\n")?.1, value).join(" "))
}
