//! From outcomes to the numbers of a report.

use super::{Breakdown, Divergence, Grid, Percentiles, Report, Row, TaskReport};
use crate::{
    journal::{Mark, Outcome},
    run::{Run, Settings, TaskRun},
    statistics::{Estimate, Weighted, bootstrap, paired_difference, percentile},
    tasks::{Facet, Metric},
};

impl Report {
    /// Sums `run` up. Only items count that every variant did. `seed` is that of the plan.
    pub fn new(run: &Run, settings: &Settings, seed: u64, notes: Vec<String>) -> Self {
        Self {
            model: settings.model.clone(),
            seed,
            question: settings.question.name().to_owned(),
            finished: run.finished,
            variants: run.variants.clone(),
            notes,
            tasks: run.tasks.iter().filter_map(|task| Sums::of(task, seed)?.report(&run.variants)).collect(),
        }
    }
}

/// One task's outcomes, `[variant][item]`, of the items that every variant did.
struct Sums<'a> {
    run: &'a TaskRun,
    metric: Metric,
    seed: u64,
    outcomes: Vec<Vec<&'a Outcome>>,
}

impl<'a> Sums<'a> {
    fn of(run: &'a TaskRun, seed: u64) -> Option<Self> {
        let done = |&item: &usize| run.outcomes.iter().all(|outcomes| outcomes[item].is_some());
        let items: Vec<usize> = (0..run.items.len()).filter(done).collect();
        let outcomes =
            run.outcomes.iter().map(|of| items.iter().filter_map(|&item| of[item].as_ref()).collect());
        let metric = run.task.metric();
        (!items.is_empty()).then(|| Self { run, metric, seed, outcomes: outcomes.collect() })
    }

    fn report(&self, variants: &[String]) -> Option<TaskReport> {
        let full = self.outcomes.first()?;
        let weighted = |outcomes: &[&Outcome]| -> Vec<Weighted> {
            outcomes.iter().map(|outcome| self.weighted(outcome, |_| true)).collect()
        };
        let show = |mean| self.metric.show(mean);
        let full_weighted = weighted(full);
        let full_bytes = mean(full.iter().map(|outcome| outcome.usage.kv_bytes as f64));
        let mut rows = Vec::new();
        for (index, (kv, outcomes)) in variants.iter().zip(&self.outcomes).enumerate() {
            let own = weighted(outcomes);
            let usage = |of: fn(&Outcome) -> f64| outcomes.iter().map(|outcome| of(outcome)).sum::<f64>();
            let (prefilled, decoded) =
                (usage(|o| o.usage.prefill_tokens as f64), usage(|o| o.usage.decode_tokens as f64));
            let kv_bytes = mean(outcomes.iter().map(|outcome| outcome.usage.kv_bytes as f64));
            rows.push(Row {
                kv: kv.clone(),
                score: bootstrap(&own, self.seed, show)?,
                difference: (index > 0)
                    .then(|| paired_difference(&own, &full_weighted, self.seed, show))
                    .flatten(),
                kv_bytes,
                kv_file_bytes: mean(outcomes.iter().map(|outcome| outcome.usage.kv_file_bytes as f64)),
                kv_share: kv_bytes / full_bytes.max(1.0),
                prefill_tokens_per_second: prefilled / usage(|o| o.usage.prefill_seconds).max(1e-9),
                decode_ms_per_token: (decoded > 0.0)
                    .then(|| 1e3 * usage(|o| o.usage.decode_seconds) / decoded),
            });
        }
        Some(TaskReport {
            task: self.run.task.name().to_owned(),
            about: self.run.task.about().to_owned(),
            metric: self.metric.name().to_owned(),
            more_is_better: self.metric.more_is_better(),
            items: full.len(),
            rows,
            chance: self.chance(),
            breakdowns: self.run.task.facets().iter().filter_map(|&facet| self.breakdown(facet)).collect(),
            grid: self.run.task.facets().contains(&Facet::Depth).then(|| self.grid()),
            divergence: if self.metric == Metric::Divergence {
                self.divergence(variants)
            } else {
                Vec::new()
            },
        })
    }

    /// What `outcome` adds to the score, of its marks those that `wanted` says.
    fn weighted(&self, outcome: &Outcome, wanted: impl Fn(&Mark) -> bool) -> Weighted {
        match self.metric {
            Metric::Accuracy => {
                let marks = outcome.marks.iter().filter(|mark| wanted(mark));
                marks.fold(Weighted { sum: 0.0, weight: 0.0 }, |total, mark| Weighted {
                    sum: total.sum + mark.sum,
                    weight: total.weight + mark.weight,
                })
            }
            Metric::Perplexity => Weighted { sum: outcome.nll, weight: outcome.scored_tokens as f64 },
            Metric::Divergence => Weighted {
                sum: outcome.kl.iter().map(|&kl| f64::from(kl)).sum(),
                weight: outcome.kl.len() as f64,
            },
        }
    }

    fn chance(&self) -> Option<Estimate> {
        if self.metric != Metric::Accuracy {
            return None;
        }
        let items: Vec<Weighted> = self
            .outcomes
            .first()?
            .iter()
            .map(|outcome| {
                let marks = outcome.marks.iter().filter_map(|mark| Some((mark.chance?, mark.weight)));
                marks.fold(Weighted { sum: 0.0, weight: 0.0 }, |total, (sum, weight)| Weighted {
                    sum: total.sum + sum,
                    weight: total.weight + weight,
                })
            })
            .collect();
        bootstrap(&items, self.seed, |mean| mean)
    }

    /// `None` when the property has one value only.
    fn breakdown(&self, facet: Facet) -> Option<Breakdown> {
        let mut values: Vec<Value> = Vec::new();
        for outcome in self.outcomes.first()? {
            for mark in &outcome.marks {
                let value = Value::of(facet, outcome, mark);
                if !values.iter().any(|known| known.label == value.label) {
                    values.push(value);
                }
            }
        }
        if values.len() < 2 {
            return None;
        }
        // Stable: what has no order of its own stays in the order of the items.
        values.sort_by(|a, b| a.order.total_cmp(&b.order));
        let scores = self.outcomes.iter().map(|outcomes| {
            let score = |value: &Value| {
                let of = |outcome: &&Outcome| {
                    let is = |mark: &Mark| Value::of(facet, outcome, mark).label == value.label;
                    let any = outcome.marks.iter().any(is);
                    any.then(|| self.weighted(outcome, is))
                };
                let items: Vec<Weighted> = outcomes.iter().filter_map(of).collect();
                bootstrap(&items, self.seed, |mean| self.metric.show(mean))
            };
            values.iter().map(score).collect()
        });
        let scores = scores.collect();
        Some(Breakdown {
            by: facet.name().to_owned(),
            scores,
            values: values.into_iter().map(|value| value.label).collect(),
        })
    }

    fn grid(&self) -> Grid {
        let full: &[&Outcome] = self.outcomes.first().map_or(&[], Vec::as_slice);
        let mut lengths: Vec<usize> = full.iter().map(|outcome| outcome.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut depths: Vec<f64> = full.iter().filter_map(|outcome| outcome.depth).collect();
        depths.sort_by(f64::total_cmp);
        depths.dedup();
        let cell = |outcomes: &[&Outcome], depth: f64, length: usize| {
            let here = outcomes.iter().filter(|o| o.length == length && o.depth == Some(depth));
            let total = here
                .map(|o| self.weighted(o, |_| true))
                .fold((0.0, 0.0), |t, w| (t.0 + w.sum, t.1 + w.weight));
            (total.1 > 0.0).then(|| self.metric.show(total.0 / total.1))
        };
        let scores = self.outcomes.iter().map(|outcomes| {
            let row = |&depth: &f64| lengths.iter().map(|&length| cell(outcomes, depth, length)).collect();
            depths.iter().map(row).collect()
        });
        Grid { scores: scores.collect(), lengths, depths }
    }

    fn divergence(&self, variants: &[String]) -> Vec<Divergence> {
        let of = |(kv, outcomes): (&String, &Vec<&Outcome>)| {
            let mut all: Vec<f64> = outcomes.iter().flat_map(|o| &o.kl).map(|&kl| f64::from(kl)).collect();
            all.sort_by(f64::total_cmp);
            let at = |share| percentile(&all, share).unwrap_or(0.0);
            let longest = outcomes.iter().map(|o| o.kl.len()).max().unwrap_or(0);
            let by_position = (0..longest)
                .map(|at| mean(outcomes.iter().filter_map(|o| o.kl.get(at)).map(|&kl| f64::from(kl))));
            let agreed: usize = outcomes.iter().map(|o| o.agreed).sum();
            Divergence {
                kv: kv.clone(),
                positions: all.len(),
                percentiles: Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) },
                top1_agreement: agreed as f64 / all.len().max(1) as f64,
                by_position: by_position.collect(),
            }
        };
        variants.iter().zip(&self.outcomes).map(of).collect()
    }
}

/// A value of a property, and where it stands among the others.
struct Value {
    label: String,
    order: f64,
}

impl Value {
    fn of(facet: Facet, outcome: &Outcome, mark: &Mark) -> Self {
        match facet {
            Facet::Length => Self { label: outcome.length.to_string(), order: outcome.length as f64 },
            Facet::Depth => {
                let depth = outcome.depth.unwrap_or(0.0);
                Self { label: format!("{:.0} %", 100.0 * depth), order: depth }
            }
            Facet::Family => Self { label: mark.family.clone(), order: 0.0 },
            Facet::Turn => {
                let mode = outcome.mode.as_deref().unwrap_or("turn");
                // Conversations first.
                let later = if mode == "multi-request" { 1000.0 } else { 0.0 };
                Self { label: format!("{mode} {}", mark.turn + 1), order: later + mark.turn as f64 }
            }
        }
    }
}

fn mean(numbers: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = numbers.fold((0.0, 0usize), |(sum, count), number| (sum + number, count + 1));
    sum / count.max(1) as f64
}
