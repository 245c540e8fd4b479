//! String retrieval: the value of a key in a JSON object (`kv`), and the string with a given beginning and end in a long
//! list (`prefix_suffix`).

use std::collections::HashSet;

use super::{Page, Question, Shared};
use crate::{EvalError, draw::Draw, tasks::fit::most_that_fit};

const KV_INSTRUCTION: &str =
    "Extract the value corresponding to the specified key in the JSON object below.\n\n";
const STRINGS_INSTRUCTION: &str =
    "Find the string with the given prefix and suffix in the dictionary below.\n\n";
/// Letters of a string, and of the prefix and suffix that are asked for.
const STRING_LETTERS: usize = 14;
const END_LETTERS: usize = 4;
/// More entries than any context holds.
const MANY: usize = 4096;

/// Pairs of random UUIDs; a question names a key.
pub(super) fn keys_and_values(page: &Page<'_>, draw: &mut Draw) -> Result<Shared, EvalError> {
    let pairs: Vec<(String, String)> =
        (0..MANY.min(page.length).max(page.turns)).map(|_| (uuid(draw), uuid(draw))).collect();
    let question = |pair: &(String, String), guess: &str| Question {
        text: format!("\n\nKey: \"{}\"\nThe value associated with the specified key is:", pair.0),
        answer: format!("\"{}\"", pair.1),
        references: vec![pair.1.clone()],
        guess: guess.to_owned(),
    };
    let write = |count: usize| {
        let entries = pairs[..count].iter().map(|(key, value)| format!("\"{key}\": \"{value}\""));
        format!("{KV_INSTRUCTION}JSON data:\n{{{}}}", entries.collect::<Vec<_>>().join(", "))
    };
    let pick = |count: usize, draw: &mut Draw| {
        let asked = draw.distinct(page.turns, count);
        asked.into_iter().map(|at| question(&pairs[at], &pairs[draw.below(count)].1)).collect()
    };
    filled(page, pairs.len(), draw, write, pick)
}

/// Random strings; a question names the first and last letters of one, which no other has.
pub(super) fn strings(page: &Page<'_>, draw: &mut Draw) -> Result<Shared, EvalError> {
    let mut ends = HashSet::new();
    let mut strings: Vec<String> = Vec::new();
    while strings.len() < MANY.min(page.length).max(page.turns) {
        let text: String = (0..STRING_LETTERS).map(|_| char::from(b'a' + draw.below(26) as u8)).collect();
        if ends.insert((text[..END_LETTERS].to_owned(), text[STRING_LETTERS - END_LETTERS..].to_owned())) {
            strings.push(text);
        }
    }
    let write = |count: usize| format!("{STRINGS_INSTRUCTION}Dictionary:\n{}", strings[..count].join("\n"));
    let pick = |count: usize, draw: &mut Draw| {
        let asked = draw.distinct(page.turns, count);
        asked
            .into_iter()
            .map(|at| {
                let text = &strings[at];
                Question {
                    text: format!(
                        "\n\nPrefix: {}\nSuffix: {}\nThe string with that prefix and suffix is:",
                        &text[..END_LETTERS],
                        &text[STRING_LETTERS - END_LETTERS..]
                    ),
                    answer: text.clone(),
                    references: vec![text.clone()],
                    guess: strings[draw.below(count)].clone(),
                }
            })
            .collect()
    };
    filled(page, strings.len(), draw, write, pick)
}

/// As many entries as fit with the first question, and then empty lines to the exact length.
fn filled(
    page: &Page<'_>,
    entries: usize,
    draw: &mut Draw,
    write: impl Fn(usize) -> String,
    pick: impl Fn(usize, &mut Draw) -> Vec<Question>,
) -> Result<Shared, EvalError> {
    let opening = page.opening().len();
    let before = draw.clone();
    let fitted = most_that_fit(page.length.saturating_sub(opening), page.turns, entries, |count| {
        let mut ids = page.prompter.text(&write(count))?;
        let body = ids.len();
        let questions = pick(count, &mut before.clone());
        if let Some(first) = questions.first() {
            ids.extend(page.prompter.text(&first.text)?);
        }
        Ok((ids, (body, questions)))
    })?;
    let needed = opening + 60 * (page.turns + 1);
    let (ids, (body, questions)) = fitted.ok_or_else(|| page.too_short(needed))?;
    let room = questions.first().map(|first| page.room(first)).transpose()?.unwrap_or(page.length);
    let context = page.exact(room, &ids[..body]).ok_or_else(|| page.too_short(needed))?;
    Ok(Shared { context, questions })
}

/// A random UUID in its usual form (version 4).
fn uuid(draw: &mut Draw) -> String {
    let (high, low) = (draw.bits(), draw.bits());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:x}{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        8 + (low >> 62),
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// Reads the value of the key that `question` names.
pub(super) fn find_value(context: &str, question: &str) -> Option<String> {
    let key = question.split('"').nth(1)?;
    let behind = context.split_once(&format!("\"{key}\": \""))?.1;
    Some(behind.split('"').next()?.to_owned())
}

/// Finds the string with the prefix and suffix that `question` names.
pub(super) fn find_string(context: &str, question: &str) -> Option<String> {
    let prefix = question.split_once("Prefix: ")?.1.lines().next()?;
    let suffix = question.split_once("Suffix: ")?.1.lines().next()?;
    let lines = context.split_once("Dictionary:\n")?.1.lines();
    lines.map(str::to_owned).find(|line| line.starts_with(prefix) && line.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_their_form_and_differ() {
        let mut draw = Draw::new(1, "uuid", 0);
        let (a, b) = (uuid(&mut draw), uuid(&mut draw));
        assert_ne!(a, b);
        let parts: Vec<usize> = a.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert!(a.as_bytes()[14] == b'4' && b"89ab".contains(&a.as_bytes()[19]), "{a}");
    }
}
