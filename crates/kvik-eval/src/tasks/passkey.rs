//! A pass key in prose (A. Mohtashami, M. Jaggi, "Landmark Attention", 2023; the form of the question follows InfiniteBench).
//!
//! One sentence holds a number of five digits and says it twice; a novel is around it, and the question stands at the end.
//! The prompt is plain text that ends with the beginning of the answer: a 135M model answers that form nearly always with
//! the full cache, and only half of the time as a chat. Around the key stands prose and not the usual repeated sentences
//! about grass and sky, which such a model goes on repeating.

use crate::{
    EvalError,
    draw::Draw,
    haystack::Needle,
    item::{Item, Job, Mode, Turn},
    prompt::Style,
    scoring::Scorer,
    tasks::{Facet, Kit, Metric, Plan, Task},
};

const INSTRUCTION: &str = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will \
                           quiz you about the important information there.\n\n";
const QUESTION: &str = "\n\nWhat is the pass key? The pass key is";
/// Digits of the key.
const DIGITS: u32 = 5;
/// The shallowest and deepest place: right at the ends every method keeps everything.
const DEPTHS: (f64, f64) = (0.05, 0.95);

/// The task `passkey`.
pub(super) struct Passkey;

impl Task for Passkey {
    fn name(&self) -> &'static str {
        "passkey"
    }

    fn about(&self) -> &'static str {
        "a five-digit pass key hidden in prose, asked for at the end"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let prompter = &kit.prompter;
        let prose = kit.prose()?;
        let head = [prompter.opening(Style::Plain), prompter.text(INSTRUCTION)?].concat();
        let question = prompter.text(QUESTION)?;
        let mut items = Vec::new();
        for &length in &plan.lengths {
            for index in 0..plan.items {
                let mut draw = Draw::new(plan.seed, &format!("passkey/{length}"), index as u64);
                let (key, guess) = (draw.number(DIGITS), draw.number(DIGITS));
                let needle = format!(" The pass key is {key}. Remember it. {key} is the pass key.");
                let depth = DEPTHS.0 + (DEPTHS.1 - DEPTHS.0) * (index as f64 + 0.5) / plan.items as f64;
                let needle = Needle { tokens: prompter.text(&needle)?, depth };
                let around = head.len() + question.len();
                let needed = around + needle.tokens.len();
                let body = length.checked_sub(around).and_then(|room| prose.fill(room, &[needle], &mut draw));
                let turn = Turn {
                    family: "passkey",
                    question: question.clone(),
                    reply: Vec::new(),
                    references: vec![key.to_string()],
                    scorer: Scorer::FirstInteger,
                    max_tokens: 12,
                    one_line: true,
                    guess: guess.to_string(),
                };
                items.push(Item {
                    id: format!("{length}/{index}"),
                    length,
                    depth: Some(depth),
                    context: [
                        &head[..],
                        &body.ok_or_else(|| EvalError::too_short(self.name(), length, needed))?,
                    ]
                    .concat(),
                    job: Job::Answer { mode: Mode::MultiTurn, turns: vec![turn] },
                });
            }
        }
        Ok(items)
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Length]
    }

    fn solve(&self, _: &str, context: &str, _: &str) -> Option<String> {
        let (_, behind) = context.split_once("The pass key is ")?;
        Some(behind.split('.').next()?.to_owned())
    }
}
