//! Who gets how many tokens of the next forward pass: a function of what it is given and of nothing else.
//!
//! Continuous batching with chunked prefill (A. Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with
//! Sarathi-Serve", OSDI 2024): every sequence that decodes gets its token in every step, and chunks of prompts fill what is left
//! of the step's budget, so that a long prompt never stops the others; how large the chunks may be says [`Pace`](super::pace::Pace).
//!
//! Prompts are read in the order of their [`Rank`]. A request that waits is admitted only when there are tokens left to compute
//! for it: whoever comes later with a better rank is not behind sequences that hold memory and do not move.

use std::cmp::Reverse;

/// Who comes first; the least does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Higher first.
    pub(super) priority: Reverse<i32>,
    /// What its owner was served so far: less first.
    pub(super) served: u64,
    /// Earlier first.
    pub(super) arrival: u64,
}

/// A running sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) rank: Rank,
    /// Tokens of its prompt that are not computed.
    pub(super) unread: usize,
    /// Tokens behind its prompt that are known and not computed: 1 while it decodes, more after a preemption.
    pub(super) unfollowed: usize,
    /// Its prompt must be read in pieces of so many tokens, because its methods act after each; `None` for any.
    pub(super) piece: Option<usize>,
    /// Methods act after each decoded token, so none may come together with others.
    pub(super) stepwise: bool,
    /// It may be why a step failed: it is computed alone.
    pub(super) suspect: bool,
}

/// Tokens for one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// Which: those that were admitted count behind those that were running.
    pub(super) sequence: usize,
    /// How many.
    pub(super) tokens: usize,
}

impl View {
    /// True if it gets one token in every step.
    pub(super) fn decodes(&self) -> bool {
        self.unread == 0 && (self.unfollowed == 1 || self.stepwise)
    }

    /// How much it takes of `left` tokens. The first piece of a step may be larger than what is left, so that it comes at all.
    fn take(&self, left: usize, first: bool) -> usize {
        match (self.unread, self.piece) {
            (0, _) => left.min(if self.stepwise { 1 } else { self.unfollowed }),
            (unread, None) => left.min(unread),
            (unread, Some(piece)) if piece.min(unread) <= left || first => piece.min(unread),
            _ => 0,
        }
    }
}

/// What became of a request that is to be admitted.
pub(super) enum Admission {
    /// It runs.
    Admitted(View),
    /// It had better wait, for what others are about to have; the next may come.
    Later,
    /// There is no room; nobody else is admitted.
    Full,
}

/// Shares out a step among `running` sequences and those that `admit(index)` makes of `waiting` ones: besides what is decoded,
/// `prefill_tokens` are read.
pub(super) fn plan(
    running: &[View],
    waiting: &[Rank],
    prefill_tokens: usize,
    admit: &mut dyn FnMut(usize) -> Admission,
) -> Vec<Share> {
    if let Some(sequence) = running.iter().position(|view| view.suspect) {
        return vec![Share { sequence, tokens: running[sequence].take(prefill_tokens, true) }];
    }
    let enumerated = || running.iter().enumerate();
    let mut shares: Vec<Share> = enumerated()
        .filter(|(_, view)| view.decodes())
        .map(|(sequence, _)| Share { sequence, tokens: 1 })
        .collect();
    let mut left = prefill_tokens;

    let mut reading: Vec<(usize, View)> =
        enumerated().filter(|(_, view)| !view.decodes()).map(|(index, view)| (index, *view)).collect();
    reading.sort_by_key(|(_, view)| view.rank);
    let mut order: Vec<usize> = (0..waiting.len()).collect();
    order.sort_by_key(|&index| waiting[index]);
    let (mut reading, mut order) = (reading.into_iter().peekable(), order.into_iter().peekable());
    let (mut sequences, mut first) = (running.len(), true);
    while left > 0 {
        let next_waits = match (reading.peek(), order.peek()) {
            (None, None) => break,
            (Some((_, view)), Some(&index)) => waiting[index] < view.rank,
            (reading, _) => reading.is_none(),
        };
        let next = if next_waits {
            match order.next().map(&mut *admit) {
                Some(Admission::Admitted(view)) => {
                    sequences += 1;
                    Some((sequences - 1, view))
                }
                Some(Admission::Later) => None,
                Some(Admission::Full) | None => {
                    order = Vec::new().into_iter().peekable();
                    None
                }
            }
        } else {
            reading.next()
        };
        if let Some((sequence, view)) = next {
            let tokens = view.take(left, first);
            if tokens > 0 {
                first = false;
                left = left.saturating_sub(tokens);
                shares.push(Share { sequence, tokens });
            }
        }
    }
    shares.sort_by_key(|share| share.sequence);
    shares
}

/// Who gives its memory to the others: of the lowest priority the one that came last.
pub(super) fn victim(running: impl IntoIterator<Item = Rank>) -> Option<usize> {
    let ranks = running.into_iter().map(|rank| (rank.priority, rank.arrival)).enumerate();
    ranks.max_by_key(|(_, rank)| *rank).map(|(index, _)| index)
}

#[cfg(test)]
mod tests;
