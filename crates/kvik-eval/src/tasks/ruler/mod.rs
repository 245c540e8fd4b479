//! RULER's synthetic families (C.-P. Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language
//! Models?", 2024).
//!
//! Needles with one key, with several keys of which one is asked for, with one key that has several values, and with
//! several keys that are all asked for; chains of variables; the common words of a list, and the frequent words of a
//! coded text. The marks are RULER's: the share of references that the answer contains. The question is a continuation
//! that begins the answer, as in RULER.
//!
//! Next to RULER the numbers have five digits and not seven, and there are fewer of them where several are asked for, so
//! that a small model has a chance.

mod needles;
mod variables;
mod word_counts;

use crate::{
    EvalError,
    draw::Draw,
    haystack::Haystack,
    item::{Item, Job, Mode, Turn},
    prompt::{Prompter, Style},
    scoring::Scorer,
    tasks::{Facet, Kit, Metric, Plan, Task},
};

pub(super) use variables::{chains, follow, needles};

/// The families, in RULER's names.
const FAMILIES: [&str; 7] =
    ["niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"];

/// The task `ruler`.
pub(super) struct Ruler;

/// A prompt of a family, laid out: `context` and `question` together have the length asked for.
struct Laid {
    /// The text before the question.
    context: Vec<u32>,
    question: Vec<u32>,
    references: Vec<String>,
    /// Answers drawn at random.
    guess: String,
    max_tokens: usize,
}

/// What a family is laid out with.
struct Page<'a> {
    prompter: &'a Prompter<'a>,
    prose: &'a Haystack,
    noise: &'a Haystack,
    family: &'static str,
    length: usize,
}

impl Page<'_> {
    fn too_short(&self, needed: usize) -> EvalError {
        EvalError::too_short(&format!("ruler:{}", self.family), self.length, needed)
    }

    /// `head`, `body` and `question` with `body` brought to the exact length by empty lines.
    fn padded(&self, head: Vec<u32>, body: Vec<u32>, question: &[u32]) -> Result<Vec<u32>, EvalError> {
        let needed = head.len() + body.len() + question.len();
        let missing = self.length.checked_sub(needed).ok_or_else(|| self.too_short(needed))?;
        Ok([head, body, self.prompter.padding(missing)].concat())
    }
}

impl Task for Ruler {
    fn name(&self) -> &'static str {
        "ruler"
    }

    fn about(&self) -> &'static str {
        "RULER's synthetic families: needles of four kinds, variable chains, common and frequent words"
    }

    fn parts(&self) -> &'static [&'static str] {
        &FAMILIES
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Family, Facet::Length]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, parts: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let (prose, noise) = (kit.prose()?, Haystack::of_noise(&kit.prompter)?);
        let mut items = Vec::new();
        for family in FAMILIES.into_iter().filter(|family| parts.is_empty() || parts.contains(family)) {
            for (&length, index) in
                plan.lengths.iter().flat_map(|length| (0..plan.items).map(move |index| (length, index)))
            {
                let mut draw = Draw::new(plan.seed, &format!("ruler/{family}/{length}"), index as u64);
                let page = Page { prompter: &kit.prompter, prose: &prose, noise: &noise, family, length };
                let laid = match family {
                    "vt" => variables::lay(&page, &mut draw)?,
                    "cwe" => word_counts::common(&page, &mut draw)?,
                    "fwe" => word_counts::frequent(&page, &mut draw)?,
                    needles => needles::lay(&page, needles::Counts::of(needles), &mut draw)?,
                };
                let turn = Turn {
                    family,
                    question: laid.question,
                    reply: Vec::new(),
                    references: laid.references,
                    scorer: Scorer::ContainsAll,
                    max_tokens: laid.max_tokens,
                    one_line: true,
                    guess: laid.guess,
                };
                items.push(Item {
                    id: format!("{family}/{length}/{index}"),
                    length,
                    depth: None,
                    context: laid.context,
                    job: Job::Answer { mode: Mode::MultiTurn, turns: vec![turn] },
                });
            }
        }
        Ok(items)
    }

    fn solve(&self, family: &str, context: &str, question: &str) -> Option<String> {
        match family {
            "vt" => variables::solve(context, question),
            "cwe" => Some(word_counts::most_frequent(context.rsplit_once("\n\n1. ")?.1, word_counts::COMMON)),
            "fwe" => Some(word_counts::most_frequent(context.split_once("\n\n")?.1, word_counts::FREQUENT)),
            _ => needles::solve(context, question),
        }
    }
}

/// The beginning of every prompt.
fn head(page: &Page<'_>, instruction: &str) -> Result<Vec<u32>, EvalError> {
    Ok([page.prompter.opening(Style::Plain), page.prompter.text(instruction)?].concat())
}
