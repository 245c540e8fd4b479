//! Servers under the same load, one right after the other.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use kvik_eval::{
    client::{Exchange, HttpTarget, Target},
    load::{Levels, LoadReport, Pace, Progress, drive},
    trace::prompts::{Material, PromptWriter},
};

use super::{Level, LevelReport, ServeReport, ServerReport, Workload};

/// One server.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// What it is called.
    pub name: String,
    /// The server.
    pub target: Arc<HttpTarget>,
    /// What prompts for it are made of.
    pub material: Material,
}

/// Puts every one of `contestants` under every level, `rounds` times in turns, after one request each that does not count.
/// `limits` are the levels of service that are held against it. When `progress` breaks, what was measured so far is
/// returned.
pub async fn race(
    contestants: &[Contestant],
    workload: &Workload,
    levels: &[Level],
    rounds: usize,
    limits: Levels,
    progress: &mut dyn FnMut(&str, Progress) -> ControlFlow<()>,
) -> ServeReport {
    let mut report = ServeReport { workload: *workload, rounds, finished: true, levels: Vec::new() };
    // Rounds of different levels have different texts, too; the first texts are those of the request that does not count.
    let mut texts = 0;
    for contestant in contestants {
        run(contestant, workload, texts, &Pace::Closed { users: 1, requests: 1 }, &mut |at| {
            progress("warming up", at)
        })
        .await;
    }
    for level in levels {
        let servers = contestants.iter().map(|contestant| ServerReport::new(&contestant.name)).collect();
        report.levels.push(LevelReport { level: *level, servers });
        for round in 0..rounds {
            texts += 1;
            for (index, contestant) in contestants.iter().enumerate() {
                let what = format!("{level}, round {} of {rounds}: {}", round + 1, contestant.name);
                let pace = level.pace(workload.seed);
                let mut stopped = false;
                let exchanges = run(contestant, workload, texts, &pace, &mut |at| {
                    let flow = progress(&what, at);
                    stopped |= flow.is_break();
                    flow
                })
                .await;
                if stopped {
                    report.finished = false;
                    return report;
                }
                let (target, model) = (contestant.target.name(), &contestant.target.model);
                let load =
                    LoadReport::new(&target, model, &level.to_string(), &exchanges, Vec::new(), limits);
                if let Some(level) = report.levels.last_mut() {
                    level.servers[index].rounds.push(load);
                }
            }
        }
    }
    report
}

async fn run(
    contestant: &Contestant,
    workload: &Workload,
    texts: usize,
    pace: &Pace,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Vec<Exchange> {
    let writer = PromptWriter::new(contestant.material.clone(), workload.seed);
    let ask = |index: usize| {
        let (parts, tokens) = workload.request(texts, index);
        contestant.target.ask(&writer.write(&parts), tokens, index as u64)
    };
    drive(&contestant.target, pace, ask, Instant::now(), progress).await
}
