//! SCBench: one shared context, several questions ("SCBench: A KV Cache-Centric Analysis of Long-Context Methods", 2025).
//!
//! A cache that was cut down for the first question can fail at the second. So each context comes with several questions,
//! in two modes. In a *multi-turn* conversation each question follows the reference answers of those before it (golden
//! context), and what the model itself says stays on a temporary overlay of the cache. With *multi-request* (SCDQ: same
//! context, different queries) the context is read without any question, and every question starts from that cache anew.
//! Later turns are read densely over what the method left.
//!
//! The parts are the benchmark's string retrieval (`kv`, `prefix_suffix`, `vt`), its in-context classification
//! (`many_shot`) and its arithmetic over a long list (`mf`), all made from the seed at an exact length; marks and question
//! forms follow the official program. Contexts are never cut in the middle, for they are built to fit.

mod dictionary;
mod many_shot;
mod numbers;
mod vt;

use crate::{
    EvalError,
    draw::Draw,
    item::{Item, Job, Turn},
    prompt::{Prompter, Style},
    scoring::Scorer,
    tasks::{Facet, Kit, Metric, Plan, Task},
};

const PARTS: [&str; 5] = ["kv", "prefix_suffix", "vt", "many_shot", "mf"];

/// The task `scbench`.
pub(super) struct ScBench;

/// A question about a shared context, as text.
struct Question {
    text: String,
    /// The reference answer that later turns build on.
    answer: String,
    references: Vec<String>,
    guess: String,
}

/// A context and questions about it; the context and the first question have the length asked for.
struct Shared {
    context: Vec<u32>,
    questions: Vec<Question>,
}

/// What a part is laid out with.
struct Page<'a> {
    prompter: &'a Prompter<'a>,
    part: &'static str,
    length: usize,
    turns: usize,
}

impl Page<'_> {
    fn too_short(&self, needed: usize) -> EvalError {
        EvalError::too_short(&format!("scbench:{}", self.part), self.length, needed)
    }

    fn opening(&self) -> Vec<u32> {
        self.prompter.opening(Style::Plain)
    }

    /// Tokens that the context may have so that it and `question` have the length asked for.
    fn room(&self, question: &Question) -> Result<usize, EvalError> {
        let asked = self.prompter.text(&question.text)?.len();
        self.length.checked_sub(asked).ok_or_else(|| self.too_short(asked + 1))
    }

    /// `body` behind the opening, brought to exactly `room` tokens by empty lines in front of it.
    fn exact(&self, room: usize, body: &[u32]) -> Option<Vec<u32>> {
        let opening = self.opening();
        let missing = room.checked_sub(opening.len() + body.len())?;
        Some([&opening, &self.prompter.padding(missing)[..], body].concat())
    }
}

/// How a part is marked and how long its answers may be. Official limits, but for `kv` and `prefix_suffix`: 150 there,
/// while an answer of one line never needs more than this.
fn marking(part: &str) -> (Scorer, usize) {
    match part {
        "vt" => (Scorer::ContainsAll, 30),
        "many_shot" => (Scorer::ContainsAny, 10),
        "mf" => (Scorer::FirstNumber, 5),
        _ => (Scorer::Contains, 60),
    }
}

impl Task for ScBench {
    fn name(&self) -> &'static str {
        "scbench"
    }

    fn about(&self) -> &'static str {
        "SCBench: several questions about one shared context, as a conversation and as requests"
    }

    fn parts(&self) -> &'static [&'static str] {
        &PARTS
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Turn, Facet::Family, Facet::Length]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, parts: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let mut items = Vec::new();
        for part in PARTS.into_iter().filter(|part| parts.is_empty() || parts.contains(part)) {
            for (&length, index) in
                plan.lengths.iter().flat_map(|length| (0..plan.items).map(move |index| (length, index)))
            {
                let mut draw = Draw::new(plan.seed, &format!("scbench/{part}/{length}"), index as u64);
                let page = Page { prompter: &kit.prompter, part, length, turns: plan.turns };
                let shared = match part {
                    "kv" => dictionary::keys_and_values(&page, &mut draw)?,
                    "prefix_suffix" => dictionary::strings(&page, &mut draw)?,
                    "vt" => vt::chains(&page, &mut draw)?,
                    "many_shot" => many_shot::shots(&page, &mut draw)?,
                    _ => numbers::list(&page, &mut draw)?,
                };
                let turns = self.turns(&page, shared.questions)?;
                // Both modes ask the same about the same.
                for &mode in &plan.modes {
                    items.push(Item {
                        id: format!("{}/{part}/{length}/{index}", mode.name()),
                        length,
                        depth: None,
                        context: shared.context.clone(),
                        job: Job::Answer { mode, turns: turns.clone() },
                    });
                }
            }
        }
        Ok(items)
    }

    fn solve(&self, family: &str, context: &str, question: &str) -> Option<String> {
        match family {
            "kv" => dictionary::find_value(context, question),
            "prefix_suffix" => dictionary::find_string(context, question),
            "vt" => vt::solve(context, question),
            "many_shot" => many_shot::classify(context, question),
            _ => numbers::look_up(context, question),
        }
    }
}

impl ScBench {
    fn turns(&self, page: &Page<'_>, questions: Vec<Question>) -> Result<Vec<Turn>, EvalError> {
        let (scorer, max_tokens) = marking(page.part);
        let turns = questions.into_iter().map(|question| {
            Ok(Turn {
                family: page.part,
                question: page.prompter.text(&question.text)?,
                // The next question begins with an empty line.
                reply: page.prompter.text(&format!(" {}", question.answer))?,
                references: question.references,
                scorer,
                max_tokens,
                one_line: true,
                guess: question.guess,
            })
        });
        turns.collect()
    }
}
