//! What every method is compared with, at the same budget: recent tokens with sinks, and tokens at random.
//!
//! A method that does not beat them has no merit of its own: the first needs no scores at all, the second no sense. The
//! budget is read from the pipeline, from the stage that says which tokens stay.

use kvik_kv::{ParameterKind, Pipeline};

/// A baseline that can stand beside a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// The first tokens and the most recent ones.
    Streaming,
    /// Tokens at random, with sinks and the most recent ones.
    Random,
}

impl Baseline {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Streaming, Self::Random];

    /// The pipeline that keeps `budget` rows at every head. Where the budget is too small for the rows that the baseline
    /// always keeps, it keeps none of those.
    fn with_budget(self, budget: usize) -> Option<Pipeline> {
        let (usual, bare) = match self {
            Self::Streaming => {
                (format!("streaming(budget={budget})"), format!("streaming(budget={budget},sinks=0)"))
            }
            Self::Random => {
                (format!("random(budget={budget})"), format!("random(budget={budget},sinks=0,recent=0)"))
            }
        };
        Pipeline::parse(&usual).or_else(|_| Pipeline::parse(&bare)).ok()
    }
}

/// Rows that a head keeps under `pipeline`; `None` if no stage says it in rows.
pub fn budget(pipeline: &Pipeline) -> Option<usize> {
    pipeline.stages().iter().find_map(|stage| {
        let parameters = stage.method().parameters.iter();
        let is_budget = |kind: &ParameterKind| matches!(kind, ParameterKind::Count { .. });
        parameters
            .filter(|parameter| parameter.name == "budget" && is_budget(&parameter.kind))
            .map(|parameter| stage.arguments().count(parameter.name))
            .next()
    })
}

/// `pipelines`, and behind them the `baselines` at each budget that they have; and a note for each pipeline that has none.
///
/// With `fixed` that budget is taken, and no pipeline needs one.
pub fn with_baselines(
    pipelines: &[Pipeline],
    baselines: &[Baseline],
    fixed: Option<usize>,
) -> (Vec<Pipeline>, Vec<String>) {
    let mut all = pipelines.to_vec();
    let mut notes = Vec::new();
    let mut budgets: Vec<usize> = fixed.into_iter().collect();
    if !baselines.is_empty() && fixed.is_none() {
        for pipeline in pipelines.iter().filter(|pipeline| !pipeline.is_full()) {
            match budget(pipeline) {
                Some(budget) if budgets.contains(&budget) => {}
                Some(budget) => budgets.push(budget),
                None => notes.push(format!(
                    "{pipeline} says no budget of rows, so it has no baselines of equal budget; --budget N would set one"
                )),
            }
        }
    }
    for budget in budgets {
        for pipeline in baselines.iter().filter_map(|baseline| baseline.with_budget(budget)) {
            if !all.contains(&pipeline) {
                all.push(pipeline);
            }
        }
    }
    (all, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pipelines: &[&str], fixed: Option<usize>) -> (Vec<String>, usize) {
        let pipelines: Vec<Pipeline> = pipelines.iter().map(|text| Pipeline::parse(text).unwrap()).collect();
        let (all, notes) = with_baselines(&pipelines, &Baseline::ALL, fixed);
        (all.iter().map(ToString::to_string).collect(), notes.len())
    }

    #[test]
    fn baselines_have_the_budgets_of_the_pipelines_once() {
        let (all, notes) = shown(&["snapkv(budget=128)", "streaming(budget=128)", "snapkv(budget=64)"], None);
        assert_eq!(
            all,
            [
                "snapkv(budget=128)",
                "streaming(budget=128)",
                "snapkv(budget=64)",
                "random(budget=128)",
                "streaming(budget=64)",
                "random(budget=64)",
            ]
        );
        assert_eq!(notes, 0);
        assert_eq!(shown(&["full"], None), (vec!["full".to_owned()], 0));
        assert_eq!(shown(&[], Some(100)).0, ["streaming(budget=100)", "random(budget=100)"]);
    }

    #[test]
    fn a_tiny_budget_has_baselines_too() {
        let (all, _) = shown(&[], Some(3));
        assert_eq!(all, ["streaming(budget=3,sinks=0)", "random(budget=3,sinks=0,recent=0)"]);
        let default = Pipeline::parse("streaming").unwrap();
        assert_eq!((budget(&default), budget(&Pipeline::full())), (Some(1024), None));
    }
}
