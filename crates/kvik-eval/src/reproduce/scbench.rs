//! SCBench: a method that served the first question, asked again.

use super::{Experiment, Lab, Results};
use crate::{EvalError, item::Mode, report::TaskReport, run::QuestionPlace, tasks::Plan};

pub(super) struct ScBench;

impl Experiment for ScBench {
    fn name(&self) -> &'static str {
        "scbench"
    }

    fn paper(&self) -> &'static str {
        "Li et al., ICLR 2025, arXiv 2412.10319"
    }

    fn claim(&self) -> &'static str {
        "methods that drop tokens for the first question answer it about as well as the full cache and fail the questions that follow; \
         methods that keep every token hold up in all of them"
    }

    fn setting(&self) -> &'static str {
        "classification with many shots, the one of SCBench's five synthetic tasks here that a 135M model solves; its string tasks lie \
         near chance with the full cache and are shown as measured. Compression (snapkv, streaming, random, kivi), loading (shadowkv) \
         and reuse (requests that fork one context) are measured; sparse prefill, the remaining stage, is not built"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        let length = lab.pick(600, 1200);
        let budget = length / 8;
        let turns = lab.pick(2, 5);
        let plan = Plan { lengths: vec![length], items: lab.pick(4, 10), turns, ..Plan::default() };
        let methods = [
            format!("snapkv(budget={budget})"),
            format!("streaming(budget={budget})"),
            format!("random(budget={budget})"),
            "kivi(bits=2)".to_owned(),
            "kivi(bits=4)".to_owned(),
            "shadowkv".to_owned(),
        ];
        let shots = lab.evaluate("scbench:many_shot", &plan, QuestionPlace::WithContext, &methods)?;
        let turn = |kv: &str, mode: &str, turn: usize| score(&shots, kv, &format!("{mode} {turn}"));
        for row in &shots.rows {
            for mode in [Mode::MultiTurn, Mode::MultiRequest] {
                for number in 1..=turns {
                    let value = turn(&row.kv, mode.name(), number);
                    results.measured(format!("right, {} {number}", mode.name()), &row.kv, value, "");
                }
            }
        }
        if lab.pick(false, true) {
            let plan = Plan { items: 8, turns: 3, ..plan };
            for part in ["kv", "prefix_suffix", "vt", "mf"] {
                let report =
                    lab.evaluate(&format!("scbench:{part}"), &plan, QuestionPlace::WithContext, &[])?;
                for row in &report.rows {
                    results.estimated(format!("right, {part}, all turns"), &row.kv, row.score, "");
                }
                if let Some(chance) = report.chance {
                    results.estimated(format!("right, {part}, all turns"), "guessing", chance, "");
                }
            }
        }
        self.judge(&turn, turns, &methods, &mut results);
        Ok(results)
    }
}

impl ScBench {
    /// The shape of the paper's result, in points of accuracy.
    fn judge(
        &self,
        turn: &impl Fn(&str, &str, usize) -> f64,
        turns: usize,
        methods: &[String],
        results: &mut Results,
    ) {
        let (talk, requests) = (Mode::MultiTurn.name(), Mode::MultiRequest.name());
        let points = |kv: &str, mode: &str, number: usize| {
            100.0 * (turn("full", mode, number) - turn(kv, mode, number))
        };
        let later =
            |kv: &str| (2..=turns).map(|number| points(kv, talk, number)).sum::<f64>() / (turns - 1) as f64;
        let snapkv = &methods[0];
        results.at_most(
            "points that snapkv loses on the first question",
            points(snapkv, talk, 1),
            5.0,
            "points",
        );
        results.at_least("points that snapkv loses on later questions", later(snapkv), 25.0, "points");
        let unseen = turn(snapkv, requests, 1);
        results.at_most(
            "snapkv on a question that it has not seen, over one that it has",
            unseen / turn(snapkv, talk, 1).max(1e-9),
            1.0,
            "",
        );
        for kv in ["kivi(bits=4)", "shadowkv"] {
            let most = (1..=turns)
                .flat_map(|number| [talk, requests].map(|mode| points(kv, mode, number)))
                .fold(f64::NEG_INFINITY, f64::max);
            results.at_most(format!("points that {kv} loses at worst on any question"), most, 5.0, "points");
        }
    }
}

/// Mean score of `kv` at one value of a breakdown.
fn score(report: &TaskReport, kv: &str, value: &str) -> f64 {
    let row = report.rows.iter().position(|row| row.kv == kv);
    let found = report.breakdowns.iter().find_map(|breakdown| {
        let column = breakdown.values.iter().position(|known| known == value)?;
        breakdown.scores.get(row?)?.get(column)?.as_ref()
    });
    found.map_or(f64::NAN, |estimate| estimate.value)
}
