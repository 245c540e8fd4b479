//! Needles of the form "one of the special magic numbers for KEY is: NUMBER", in prose.

use super::{Laid, Page, head};
use crate::{EvalError, draw::Draw, haystack::Needle, words};

/// Digits of a number.
const DIGITS: u32 = 5;

/// How many of what a family hides and asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// Keys that are hidden.
    keys: usize,
    /// Numbers of each key.
    values: usize,
    /// Keys that are asked for.
    queries: usize,
}

impl Counts {
    /// Those of a family of RULER's, with 2 where RULER has 4 values or queries.
    pub(super) fn of(family: &str) -> Self {
        match family {
            "niah_multikey" => Self { keys: 4, values: 1, queries: 1 },
            "niah_multivalue" => Self { keys: 1, values: 2, queries: 1 },
            "niah_multiquery" => Self { keys: 2, values: 1, queries: 2 },
            _ => Self { keys: 1, values: 1, queries: 1 },
        }
    }
}

/// A prompt with `counts` needles at depths that are drawn.
pub(super) fn lay(page: &Page<'_>, counts: Counts, draw: &mut Draw) -> Result<Laid, EvalError> {
    let keys = words::keys(counts.keys, draw);
    let mut needles = Vec::new();
    let mut references = Vec::new();
    let mut guesses = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        for _ in 0..counts.values {
            let number = draw.number(DIGITS);
            let text = format!(" One of the special magic numbers for {key} is: {number}.");
            needles
                .push(Needle { tokens: page.prompter.text(&text)?, depth: draw.below(1001) as f64 / 1000.0 });
            if index < counts.queries {
                references.push(number.to_string());
                guesses.push(draw.number(DIGITS).to_string());
            }
        }
    }
    let asked = keys[..counts.queries.min(keys.len())].join(" and ");
    let several = references.len() > 1;
    let (numbers, are, sentence) = if several {
        ("numbers", "are", "What are all the special magic numbers")
    } else {
        ("number", "is", "What is the special magic number")
    };
    let head = head(
        page,
        &format!(
            "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you \
             about the {numbers} afterwards.\n\n"
        ),
    )?;
    let question = page.prompter.text(&format!(
        "\n\n{sentence} for {asked} mentioned in the provided text? The special magic {numbers} for {asked} {are}:"
    ))?;
    let around = head.len() + question.len();
    let hidden: usize = needles.iter().map(|needle| needle.tokens.len()).sum();
    let body = page.length.checked_sub(around).and_then(|room| page.prose.fill(room, &needles, draw));
    let body = body.ok_or_else(|| page.too_short(around + hidden))?;
    Ok(Laid {
        context: [head, body].concat(),
        question,
        max_tokens: 8 + 10 * references.len(),
        references,
        guess: guesses.join(", "),
    })
}

/// Reads the numbers of the keys that `question` names.
pub(super) fn solve(context: &str, question: &str) -> Option<String> {
    let asked = question.split_once(" for ")?.1.split_once(" mentioned")?.0;
    let numbers = asked.split(" and ").flat_map(|key| {
        let mark = format!("magic numbers for {key} is: ");
        let parts: Vec<&str> =
            context.split(&mark).skip(1).filter_map(|part| part.split('.').next()).collect();
        parts
    });
    Some(numbers.collect::<Vec<_>>().join(", "))
}
