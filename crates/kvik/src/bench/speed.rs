//! The race: Kvik and its peers, figure by figure, in interleaved rounds.

use std::path::Path;

use kvik_kernels::ThreadPool;
use kvik_model::ForwardError;
use serde::Serialize;

use super::{
    figure::Figure,
    limits::{Bound, Gauge, Limits},
    peer::Peer,
    spread::Spread,
    subject::Subject,
    table::Table,
    work::ModelCost,
};

/// Everything that takes part.
pub struct Race<'a> {
    /// Kvik.
    pub subject: Subject<'a>,
    /// What its passes cost.
    pub cost: ModelCost,
    /// The machine.
    pub gauge: Gauge,
    /// The threads of Kvik, and how many a peer is told to use.
    pub pool: &'a ThreadPool,
    /// The model's file or folder, for the peers.
    pub model: &'a Path,
    /// What is measured.
    pub figures: Vec<Figure>,
    /// Peers at figures of one sequence.
    pub peers: Vec<Peer>,
    /// Peers at figures of several sequences.
    pub batch_peers: Vec<Peer>,
}

/// What the race found.
#[derive(Clone, Debug, Serialize)]
pub struct SpeedReport {
    /// The model's name.
    pub model: String,
    /// Rounds.
    pub rounds: usize,
    /// What the machine can do.
    pub limits: Limits,
    /// Figure by figure.
    pub figures: Vec<FigureReport>,
    /// What a reader should know.
    pub notes: Vec<String>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct FigureReport {
    /// What was measured.
    pub figure: Figure,
    /// Kvik's tokens per second.
    pub tokens_per_s: Spread,
    /// What this machine's limits allow.
    pub roofline: Roofline,
    /// The peers, in the order in which they were given.
    pub peers: Vec<PeerReport>,
}

/// The limit of a figure, and how much of it was reached.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Roofline {
    /// Tokens per second if nothing but the limit took time.
    pub tokens_per_s: f64,
    /// Which limit that is.
    pub bound: Bound,
    /// Kvik's median over it.
    pub share: f64,
    /// The same over the limit for activations in one plane of 8 bits.
    pub share_of_one_plane: f64,
}

/// One peer at one figure.
#[derive(Clone, Debug, Serialize)]
pub struct PeerReport {
    /// Its name.
    pub name: String,
    /// Its tokens per second, and Kvik's over them, round by round; or what went wrong.
    #[serde(flatten)]
    pub outcome: PeerOutcome,
}

/// What a peer did at a figure.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerOutcome {
    /// It failed, and was not asked again.
    Error(String),
    /// It was measured.
    #[serde(untagged)]
    Measured {
        /// Its tokens per second.
        tokens_per_s: Spread,
        /// Kvik's over the peer's.
        ratio: Spread,
    },
}

/// What was measured at one figure so far.
struct Samples<'a> {
    figure: Figure,
    ours: Vec<f64>,
    theirs: Vec<PeerSamples<'a>>,
}

struct PeerSamples<'a> {
    peer: &'a Peer,
    measured: Result<Vec<f64>, String>,
}

impl Race<'_> {
    /// Runs all `rounds`; `progress` hears what is being measured.
    ///
    /// # Errors
    /// If Kvik itself fails. A peer that fails is reported and left out.
    pub fn run(
        mut self,
        rounds: usize,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(Limits, Vec<FigureReport>), ForwardError> {
        let (peers, batch_peers) = (std::mem::take(&mut self.peers), std::mem::take(&mut self.batch_peers));
        let samples = |&figure: &Figure| {
            let peers = if figure.sequences() > 1 { &batch_peers } else { &peers };
            let theirs = peers.iter().map(|peer| PeerSamples { peer, measured: Ok(Vec::new()) }).collect();
            Samples { figure, ours: Vec::new(), theirs }
        };
        let mut table: Vec<Samples<'_>> = self.figures.iter().map(samples).collect();

        progress("warming up");
        if let Some(shortest) =
            table.iter().map(|samples| samples.figure).min_by_key(|figure| figure.length())
        {
            self.subject.measure(shortest)?;
        }
        for round in 1..=rounds {
            progress(&format!("round {round} of {rounds}: this machine's limits"));
            self.gauge.measure(self.pool);
            for Samples { figure, ours, theirs } in &mut table {
                progress(&format!("round {round} of {rounds}: {figure}"));
                ours.push(self.subject.measure(*figure)?);
                for PeerSamples { peer, measured } in theirs {
                    let Ok(speeds) = measured else { continue };
                    progress(&format!("round {round} of {rounds}: {figure}, {}", peer.name));
                    match peer.measure(*figure, self.model, self.pool.threads()) {
                        Ok(speed) => speeds.push(speed),
                        Err(error) => *measured = Err(error.to_string()),
                    }
                }
            }
        }
        let limits = self.gauge.limits().clone();
        let figures = table.iter().filter_map(|samples| samples.report(&self.cost, &limits)).collect();
        Ok((limits, figures))
    }
}

impl Samples<'_> {
    /// `None` if there was no round.
    fn report(&self, cost: &ModelCost, limits: &Limits) -> Option<FigureReport> {
        let tokens_per_s = Spread::of(self.ours.iter().copied())?;
        let (tokens, work) = (self.figure.tokens() as f64, cost.work(self.figure.passes()));
        let (seconds, bound) = limits.least_seconds(&work);
        let (seconds_of_one_plane, _) = limits.least_seconds(&work.with_one_plane());
        let roofline = Roofline {
            tokens_per_s: tokens / seconds,
            bound,
            share: tokens_per_s.median * seconds / tokens,
            share_of_one_plane: tokens_per_s.median * seconds_of_one_plane / tokens,
        };
        let peers = self
            .theirs
            .iter()
            .map(|theirs| PeerReport { name: theirs.peer.name.clone(), outcome: theirs.outcome(&self.ours) });
        Some(FigureReport { figure: self.figure, tokens_per_s, roofline, peers: peers.collect() })
    }
}

impl PeerSamples<'_> {
    fn outcome(&self, ours: &[f64]) -> PeerOutcome {
        let theirs = match &self.measured {
            Ok(theirs) => theirs,
            Err(error) => return PeerOutcome::Error(error.clone()),
        };
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
        match (Spread::of(theirs.iter().copied()), Spread::of(ratios)) {
            (Some(tokens_per_s), Some(ratio)) => PeerOutcome::Measured { tokens_per_s, ratio },
            _ => PeerOutcome::Error("it was never asked".into()),
        }
    }
}

impl SpeedReport {
    /// The figures, with a pair of columns for each peer.
    pub fn table(&self) -> Table {
        let mut names: Vec<&str> = Vec::new();
        for peer in self.figures.iter().flat_map(|figure| &figure.peers) {
            if !names.contains(&peer.name.as_str()) {
                names.push(&peer.name);
            }
        }
        let own = ["tokens/s", "min–max", "limit", "by", "share", "share, 8-bit"];
        let mut header: Vec<String> = std::iter::once(&self.model).cloned().collect();
        header.extend(own.map(String::from));
        header.extend(names.iter().flat_map(|name| [(*name).to_owned(), "ratio".to_owned()]));
        let mut table = Table::new(header);
        for figure in &self.figures {
            table.push(figure.row(&names));
        }
        table
    }

    /// What went wrong, and what a reader should know, a line each.
    pub fn remarks(&self) -> Vec<String> {
        let failures = self.figures.iter().flat_map(|figure| {
            figure.peers.iter().filter_map(move |peer| match &peer.outcome {
                PeerOutcome::Error(error) => Some(format!("{} at {}: {error}", peer.name, figure.figure)),
                PeerOutcome::Measured { .. } => None,
            })
        });
        self.notes.iter().cloned().chain(failures).collect()
    }
}

impl FigureReport {
    fn row(&self, peers: &[&str]) -> Vec<String> {
        let Spread { median, min, max } = self.tokens_per_s;
        let bound = match self.roofline.bound {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
        };
        let mut row = vec![
            self.figure.to_string(),
            speed(median),
            format!("{}–{}", speed(min), speed(max)),
            speed(self.roofline.tokens_per_s),
            bound.to_owned(),
            percent(self.roofline.share),
            percent(self.roofline.share_of_one_plane),
        ];
        for name in peers {
            let peer = self.peers.iter().find(|peer| peer.name == *name);
            row.extend(match peer.map(|peer| &peer.outcome) {
                Some(PeerOutcome::Measured { tokens_per_s, ratio: Spread { median, min, max } }) => {
                    [speed(tokens_per_s.median), format!("{median:.2} ({min:.2}–{max:.2})")]
                }
                Some(PeerOutcome::Error(_)) => ["failed".into(), String::new()],
                None => Default::default(),
            });
        }
        row
    }
}

/// Tokens per second with three digits or more.
fn speed(tokens_per_s: f64) -> String {
    let decimals = if tokens_per_s < 10.0 { 2 } else { usize::from(tokens_per_s < 100.0) };
    format!("{tokens_per_s:.decimals$}")
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}
