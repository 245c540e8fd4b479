//! GSM8K: word problems with worked solutions (K. Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021).
//!
//! A few solved problems come first and the answer is a long chain of small steps, so it shows what a method does to long
//! answers. A 135M model solves next to none of them: there the table of chance and full cache says that nothing can be
//! told.

use crate::{
    EvalError,
    draw::Draw,
    item::{Item, Job, Mode, Turn},
    prompt::Style,
    scoring::{Scorer, final_number},
    tasks::{Facet, Kit, Metric, Plan, Task},
};

/// Solved problems before each question: the first of the set, which are never asked.
const SHOTS: usize = 4;
/// Tokens of an answer.
const MAX_TOKENS: usize = 256;

/// The task `gsm8k`.
pub(super) struct Gsm8k;

impl Task for Gsm8k {
    fn name(&self) -> &'static str {
        "gsm8k"
    }

    fn about(&self) -> &'static str {
        "word problems, four solved ones first, solved step by step (lengths are their own)"
    }

    fn metric(&self) -> Metric {
        Metric::Accuracy
    }

    fn facets(&self) -> &'static [Facet] {
        &[]
    }

    fn items(&self, kit: &Kit<'_>, plan: &Plan, _: &[&'static str]) -> Result<Vec<Item>, EvalError> {
        let prompter = &kit.prompter;
        let problems = kit.data.gsm8k(plan.items + SHOTS)?;
        let (shots, asked) = problems.split_at(SHOTS);
        let style = Style::Chat;
        let mut context = prompter.opening(style);
        for shot in shots {
            context.extend(prompter.text(&shot.question)?);
            context.extend(prompter.ask(style)?);
            context.extend(prompter.text(&without_calculations(&shot.answer))?);
            context.extend(prompter.next(style)?);
        }
        let mut draw = Draw::new(plan.seed, "gsm8k", 0);
        let mut items = Vec::new();
        for chosen in draw.distinct(plan.items, asked.len()) {
            let problem = &asked[chosen];
            let question = [prompter.text(&problem.question)?, prompter.ask(style)?].concat();
            let other = draw.pick(asked).and_then(|other| final_number(&other.answer)).unwrap_or(0.0);
            let turn = Turn {
                family: "gsm8k",
                question,
                reply: Vec::new(),
                references: vec![problem.answer.clone()],
                scorer: Scorer::FinalNumber,
                max_tokens: MAX_TOKENS,
                one_line: false,
                guess: other.to_string(),
            };
            items.push(Item {
                id: chosen.to_string(),
                length: context.len() + turn.question.len(),
                depth: None,
                context: context.clone(),
                job: Job::Answer { mode: Mode::MultiTurn, turns: vec![turn] },
            });
        }
        Ok(items)
    }
}

/// A solution without the `<<16-3=13>>` that the set's authors put in for a calculator.
fn without_calculations(solution: &str) -> String {
    let mut plain = String::with_capacity(solution.len());
    let mut rest = solution;
    while let Some((before, behind)) = rest.split_once("<<") {
        plain.push_str(before);
        match behind.split_once(">>") {
            Some((_, after)) => rest = after,
            None => {
                plain.push_str("<<");
                rest = behind;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::without_calculations;

    #[test]
    fn calculations_are_taken_out() {
        assert_eq!(without_calculations("16 - 3 = <<16-3=13>>13 and <<1+1=2>>2."), "16 - 3 = 13 and 2.");
        assert_eq!(without_calculations("a << b"), "a << b");
    }
}
