//! The tasks, one file each.
//!
//! A [`Task`] makes items: for each length, as many as the plan says, from the seed. What it measures is a [`Metric`]. The
//! synthetic ones also come with a solver, which reads the same text as the model and must get everything right, and
//! with a guess per question, which shows what chance gives: between the two there is room for a model.
//!
//! A new task is one file here and one line in [`REGISTRY`].

mod copy;
mod fit;
mod gsm8k;
mod induction;
mod kl;
mod lambada;
mod niah;
mod passkey;
mod ppl;
mod recall;
mod ruler;
mod scbench;
mod windows;

use crate::{
    EvalError,
    data::DataFolder,
    haystack::Haystack,
    item::{Item, Mode},
    prompt::Prompter,
};

pub use induction::next_by_induction;

/// Every task, in the order in which `kvik eval --list` shows them.
pub const REGISTRY: &[&dyn Task] = &[
    &ppl::Ppl,
    &kl::Kl,
    &copy::Copy,
    &recall::Recall,
    &passkey::Passkey,
    &niah::Niah,
    &ruler::Ruler,
    &scbench::ScBench,
    &lambada::Lambada,
    &gsm8k::Gsm8k,
];

/// A source of items.
pub trait Task: Sync {
    /// What the command line calls it.
    fn name(&self) -> &'static str;

    /// One line about it.
    fn about(&self) -> &'static str;

    /// Its parts, which can be chosen one by one; empty when it is of one piece.
    fn parts(&self) -> &'static [&'static str] {
        &[]
    }

    /// What is measured.
    fn metric(&self) -> Metric;

    /// Along what its results are told apart, besides the whole.
    fn facets(&self) -> &'static [Facet] {
        &[Facet::Length]
    }

    /// The items that `plan` asks for, of the chosen `parts` (all of them when that is empty).
    ///
    /// # Errors
    /// A length that does not work, missing data, a text that cannot be tokenised.
    fn items(&self, kit: &Kit<'_>, plan: &Plan, parts: &[&'static str]) -> Result<Vec<Item>, EvalError>;

    /// The right answer to `question` of the kind `family`, found by reading `context`; `None` for tasks whose answers
    /// are not in the text.
    fn solve(&self, family: &str, context: &str, question: &str) -> Option<String> {
        let _ = (family, context, question);
        None
    }
}

/// What a task measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The mean mark, from 0 to 1: more is better.
    Accuracy,
    /// `exp` of the mean negative log-probability per token: less is better.
    Perplexity,
    /// The mean Kullback-Leibler divergence from the full cache, in nats: less is better.
    Divergence,
}

impl Metric {
    /// Its name, for the head of a column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Perplexity => "perplexity",
            Self::Divergence => "KL (nats)",
        }
    }

    /// True if more of it is better.
    pub fn more_is_better(self) -> bool {
        self == Self::Accuracy
    }

    /// What is shown of a mean.
    pub fn show(self, mean: f64) -> f64 {
        if self == Self::Perplexity { mean.exp() } else { mean }
    }
}

/// A property of an item or answer by which results are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facet {
    /// Tokens of the prompt.
    Length,
    /// Where the needle lies.
    Depth,
    /// The kind of question.
    Family,
    /// One conversation or independent requests, and the first, second, … question of it.
    Turn,
}

impl Facet {
    /// Its name, for the head of a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Depth => "depth",
            Self::Family => "kind",
            Self::Turn => "turn",
        }
    }
}

/// How much of each task is run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Lengths of prompts, in tokens.
    pub lengths: Vec<usize>,
    /// Depths of needles, from 0 (start) to 1 (end), where a task has a grid of them.
    pub depths: Vec<f64>,
    /// Items per length, and per part and mode where a task has them.
    pub items: usize,
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// Questions about each context, where a task asks several.
    pub turns: usize,
    /// Tokens that a text is followed for behind the prefilled part.
    pub forced_tokens: usize,
    /// How questions about one context hang together, where a task has both ways.
    pub modes: Vec<Mode>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            lengths: vec![1024],
            depths: vec![0.0, 0.25, 0.5, 0.75, 1.0],
            items: 10,
            seed: 1,
            turns: 5,
            forced_tokens: 128,
            modes: vec![Mode::MultiTurn, Mode::MultiRequest],
        }
    }
}

impl Plan {
    /// Checks that every number means something.
    ///
    /// # Errors
    /// [`EvalError::Plan`] names the first that does not.
    pub fn validate(&self) -> Result<(), EvalError> {
        let complaint = |text: &str| Err(EvalError::Plan(text.to_owned()));
        if self.items == 0 {
            return complaint("no items are asked for: use --items 1 or more");
        }
        if self.lengths.is_empty() || self.lengths.contains(&0) {
            return complaint("--lengths needs at least one length, and each at least 1 token");
        }
        if self.depths.is_empty() || self.depths.iter().any(|depth| !(0.0..=1.0).contains(depth)) {
            return complaint("--depths needs at least one depth, and each from 0 (start) to 1 (end)");
        }
        if self.turns == 0 {
            return complaint("no questions are asked for: use --turns 1 or more");
        }
        if self.forced_tokens < 2 {
            return complaint(
                "at least two tokens must be followed for a score through decode: use --forced 2 or more",
            );
        }
        if self.modes.is_empty() {
            return complaint("no mode is asked for: use --mode multi-turn, --mode multi-request or both");
        }
        Ok(())
    }
}

/// What tasks make their items with.
pub struct Kit<'a> {
    /// Writes prompts.
    pub prompter: Prompter<'a>,
    /// Finds texts and test sets.
    pub data: DataFolder,
}

impl Kit<'_> {
    /// Prose to hide needles in; it begins again when a prompt is longer than the text.
    fn prose(&self) -> Result<Haystack, EvalError> {
        Haystack::of_prose(&self.prompter, &self.data.novel(0)?)
    }
}

/// A task, and which of its parts are wanted.
pub struct Choice {
    /// The task.
    pub task: &'static dyn Task,
    /// The parts; empty for all.
    pub parts: Vec<&'static str>,
}

impl Choice {
    /// Reads `name` or `name:part`.
    ///
    /// # Errors
    /// Names what there is when there is no such task or part.
    pub fn parse(text: &str) -> Result<Self, EvalError> {
        let (name, part) = text.split_once(':').map_or((text, None), |(name, part)| (name, Some(part)));
        let unknown = || EvalError::UnknownTask {
            name: name.to_owned(),
            known: REGISTRY.iter().map(|task| task.name()).collect::<Vec<_>>().join(", "),
        };
        let task = *REGISTRY.iter().find(|task| task.name() == name).ok_or_else(unknown)?;
        let Some(part) = part else { return Ok(Self { task, parts: Vec::new() }) };
        let known = task.parts().iter().find(|known| **known == part);
        let known = known.ok_or_else(|| EvalError::UnknownPart {
            task: task.name(),
            name: part.to_owned(),
            known: if task.parts().is_empty() { "none".to_owned() } else { task.parts().join(", ") },
        })?;
        Ok(Self { task, parts: vec![known] })
    }

    /// Reads several, and joins the parts of one task.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn parse_all<S: AsRef<str>>(texts: &[S]) -> Result<Vec<Self>, EvalError> {
        let mut choices: Vec<Self> = Vec::new();
        for text in texts {
            let new = Self::parse(text.as_ref())?;
            match choices.iter_mut().find(|choice| choice.task.name() == new.task.name()) {
                // All parts are wanted already, or now.
                Some(old) if old.parts.is_empty() || new.parts.is_empty() => old.parts.clear(),
                Some(old) => {
                    old.parts.extend(new.parts);
                    old.parts.dedup();
                }
                None => choices.push(new),
            }
        }
        Ok(choices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_and_parts_are_found_by_name() {
        let choices =
            Choice::parse_all(&["ruler:vt", "passkey", "ruler:cwe", "scbench", "scbench:kv"]).unwrap();
        let shown: Vec<_> = choices.iter().map(|c| (c.task.name(), c.parts.clone())).collect();
        assert_eq!(shown, [("ruler", vec!["vt", "cwe"]), ("passkey", vec![]), ("scbench", vec![])]);
        let error = |text| Choice::parse(text).err().unwrap().to_string();
        assert!(error("pass").contains("passkey"), "{}", error("pass"));
        assert!(error("ruler:x").contains("vt"), "{}", error("ruler:x"));
        assert!(error("ppl:x").contains("parts are none"), "{}", error("ppl:x"));
    }

    #[test]
    fn names_are_different_and_every_task_says_what_it_is() {
        let mut names: Vec<&str> = REGISTRY.iter().map(|task| task.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REGISTRY.len());
        assert!(REGISTRY.iter().all(|task| task.about().len() > 20 && task.about().len() < 100));
    }

    #[test]
    fn senseless_plans_are_refused() {
        assert!(Plan::default().validate().is_ok());
        for plan in [
            Plan { items: 0, ..Plan::default() },
            Plan { lengths: vec![], ..Plan::default() },
            Plan { lengths: vec![0], ..Plan::default() },
            Plan { depths: vec![1.5], ..Plan::default() },
            Plan { turns: 0, ..Plan::default() },
            Plan { forced_tokens: 1, ..Plan::default() },
            Plan { modes: vec![], ..Plan::default() },
        ] {
            assert!(plan.validate().is_err(), "{plan:?}");
        }
    }
}
