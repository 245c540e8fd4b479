//! What rows are computed for.

use std::ops::Range;

/// What a row is computed for, and so how its products may be rounded.
///
/// A prompt is bound by arithmetic: its rows may go through whatever unit multiplies fastest. A decoded token is bound by
/// memory: its rows get the most exact products that keep up with it. The caller says which, row by row, so that a
/// token's result does not depend on how many others happen to share its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Part of a prompt.
    Prefill,
    /// A token whose successor is about to be chosen, or a draft that is checked as if it were one.
    Decode,
}

/// The phases of a batch's rows, in runs of equal phase.
#[derive(Clone, Debug, Default)]
pub struct Phases {
    /// The end of each run and its phase.
    runs: Vec<(usize, Phase)>,
}

impl Phases {
    /// `rows` rows of one phase.
    pub fn all(rows: usize, phase: Phase) -> Self {
        Self { runs: vec![(rows, phase)] }
    }

    /// Becomes equal to `other`, in the memory that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.runs.clone_from(&other.runs);
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Appends `rows` rows of `phase`.
    pub fn push(&mut self, rows: usize, phase: Phase) {
        let end = self.rows() + rows;
        match self.runs.last_mut() {
            Some((last_end, last)) if *last == phase => *last_end = end,
            _ => self.runs.push((end, phase)),
        }
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.runs.last().map_or(0, |&(end, _)| end)
    }

    /// The runs, first row to last.
    pub fn runs(&self) -> impl Iterator<Item = (Range<usize>, Phase)> + Clone {
        let mut start = 0;
        self.runs.iter().map(move |&(end, phase)| (std::mem::replace(&mut start, end)..end, phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_phase_are_one_run() {
        let mut phases = Phases::all(2, Phase::Decode);
        phases.push(3, Phase::Decode);
        phases.push(4, Phase::Prefill);
        phases.push(1, Phase::Decode);
        let runs: Vec<_> = phases.runs().collect();
        assert_eq!(runs, [(0..5, Phase::Decode), (5..9, Phase::Prefill), (9..10, Phase::Decode)]);
        assert_eq!(phases.rows(), 10);
    }
}
