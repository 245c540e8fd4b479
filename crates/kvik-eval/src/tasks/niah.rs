//! A needle at every depth and length (G. Kamradt, "Needle in a Haystack", 2023), with the needle of RULER.
//!
//! The grid of lengths and depths is drawn as a heat map: it shows whether a method loses the beginning, the middle, or
//! only long prompts.

use crate::{
    EvalError,
    draw::Draw,
    haystack::Needle,
    item::{Item, Job, Mode, Turn},
    prompt::Style,
    scoring::Scorer,
    tasks::{Facet, Kit, Metric, Plan, Task},
    words,
};

const INSTRUCTION: &str = "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz \
                           you about the number afterwards.\n\n";
/// Digits of the number, as in RULER.
const DIGITS: u32 = 7;

/// The task `niah`.
pub(super) struct Niah;

impl Task for Niah {
    fn name(&self) -> &'static str {
        "niah"
    }

    fn about(&self) -> &'static str {
        "needle in a haystack: a number at each depth of prompts of each length, as a heat map"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[Facet::Length, Facet::Depth]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let prompter = &kit.prompter;
        let prose = kit.prose()?;
        let head = [prompter.opening(Style::Plain), prompter.text(INSTRUCTION)?].concat();
        let per_cell = plan.items.div_ceil(plan.depths.len());
        let mut items = Vec::new();
        for &length in &plan.lengths {
            for (&depth, index) in
                plan.depths.iter().flat_map(|depth| (0..per_cell).map(move |index| (depth, index)))
            {
                let id = format!("{length}/{depth}/{index}");
                let mut draw = Draw::new(plan.seed, &format!("niah/{id}"), 0);
                let (number, guess) = (draw.number(DIGITS), draw.number(DIGITS));
                let key = words::keys(1, &mut draw).concat();
                let needle = format!(" The special magic number for {key} is: {number}.");
                let needle = Needle { tokens: prompter.text(&needle)?, depth };
                let question = prompter.text(&format!(
                    "\n\nWhat is the special magic number for {key} mentioned in the provided text? The special magic \
                     number for {key} is:"
                ))?;
                let around = head.len() + question.len();
                let needed = around + needle.tokens.len();
                let body = length.checked_sub(around).and_then(|room| prose.fill(room, &[needle], &mut draw));
                let turn = Turn {
                    family: "niah",
                    question,
                    reply: Vec::new(),
                    references: vec![number.to_string()],
                    scorer: Scorer::ContainsAll,
                    max_tokens: 12,
                    one_line: true,
                    guess: guess.to_string(),
                };
                items.push(Item {
                    id,
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

    fn solve(&self, _: &str, context: &str, question: &str) -> Option<String> {
        let key = question.split_once("number for ")?.1.split_whitespace().next()?;
        let behind = context.split_once(&format!("number for {key} is: "))?.1;
        Some(behind.split('.').next()?.to_owned())
    }
}
