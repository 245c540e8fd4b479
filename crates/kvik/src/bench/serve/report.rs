//! What a race of servers measured, as tables.

use kvik_eval::load::{LoadReport, Milliseconds};
use serde::Serialize;

use super::{Level, Workload};
use crate::bench::{spread::Spread, table::Table};

/// All servers at all levels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServeReport {
    /// What was asked.
    pub workload: Workload,
    /// Rounds that were to be run.
    pub rounds: usize,
    /// True if all were.
    pub finished: bool,
    /// Level by level.
    pub levels: Vec<LevelReport>,
}

/// All servers at one level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LevelReport {
    /// How many asked.
    pub level: Level,
    /// Server by server, the one that others are set against first.
    pub servers: Vec<ServerReport>,
}

/// One server at one level.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerReport {
    /// What it is called.
    pub name: String,
    /// Round by round.
    pub rounds: Vec<LoadReport>,
}

impl ServerReport {
    /// Of a server that was not measured yet.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rounds: Vec::new() }
    }

    /// The first server's total tokens per second as a multiple of this one's, round by round.
    pub fn ratio(&self, first: &Self) -> Option<Spread> {
        // A server that does not count its prompts' tokens cannot be compared.
        let counted = |round: &LoadReport| round.throughput.prompt_tokens_per_second > 0.0;
        if ![first, self].into_iter().all(|server| server.rounds.iter().all(counted)) {
            return None;
        }
        let total = |round: &LoadReport| round.throughput.total_tokens_per_second;
        let rounds = first.rounds.iter().zip(&self.rounds);
        Spread::of(rounds.map(|(first, this)| total(first) / total(this)).filter(|ratio| ratio.is_finite()))
    }

    fn spread(&self, of: impl Fn(&LoadReport) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }
}

impl ServeReport {
    /// The figures of every server at every level: medians over the rounds.
    pub fn table(&self) -> Table {
        let header = [
            "load",
            "server",
            "all tok/s",
            "answer tok/s",
            "requests/s",
            "TTFT p50 ms",
            "p99",
            "ITL p50 ms",
            "p99",
            "answer p50 s",
            "cached",
            "failed",
            "first is",
        ];
        let mut table = Table::new(header.map(str::to_owned).to_vec());
        for level in &self.levels {
            for (index, server) in level.servers.iter().enumerate() {
                let median = |of: &dyn Fn(&LoadReport) -> Option<f64>| {
                    server.spread(of).map_or_else(String::new, |spread| number(spread.median))
                };
                let time = |times: fn(&LoadReport) -> Option<Milliseconds>, at: fn(&Milliseconds) -> f64| {
                    median(&|round| times(round).as_ref().map(at))
                };
                let failed: usize = server.rounds.iter().map(LoadReport::failed).sum();
                let ratio = level.servers.first().filter(|_| index > 0).and_then(|first| server.ratio(first));
                table.push(vec![
                    level.level.to_string(),
                    server.name.clone(),
                    median(&|round| Some(round.throughput.total_tokens_per_second)),
                    median(&|round| Some(round.throughput.completion_tokens_per_second)),
                    median(&|round| Some(round.throughput.requests_per_second)),
                    time(|round| round.ttft, |ms| ms.p50),
                    time(|round| round.ttft, |ms| ms.p99),
                    time(|round| round.itl, |ms| ms.p50),
                    time(|round| round.itl, |ms| ms.p99),
                    time(|round| round.latency, |ms| ms.p50 / 1000.0),
                    server
                        .spread(LoadReport::cached_share)
                        .map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share.median)),
                    failed.to_string(),
                    ratio.map_or_else(String::new, |ratio| format!("{:.2}x", ratio.median)),
                ]);
            }
        }
        table
    }

    /// What stands below the table: failures, and answers that were shorter than asked for.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for level in &self.levels {
            for server in &level.servers {
                for failure in server.rounds.iter().flat_map(|round| &round.failures) {
                    let said = failure.messages.first().map(|said| format!(": {said}")).unwrap_or_default();
                    remarks.push(format!(
                        "{} at {}: {} {}{said}",
                        server.name, level.level, failure.requests, failure.kind
                    ));
                }
                let sum = |of: fn(&LoadReport) -> u64| server.rounds.iter().map(of).sum::<u64>();
                let (got, wanted) = (sum(|round| round.tokens.completion), sum(|round| round.tokens.wanted));
                if (got as f64) < 0.99 * wanted as f64 {
                    let share = 100.0 * got as f64 / wanted as f64;
                    remarks.push(format!(
                        "{} at {}: answers have {share:.0} % of the tokens asked for",
                        server.name, level.level
                    ));
                }
            }
        }
        remarks
    }
}

/// A number with about three digits that mean something.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
