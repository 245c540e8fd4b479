//! Equal shares of the machine for all who have something to compute.
//!
//! After the virtual token counter of Y. Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): each owner has a
//! counter of what it was served, and among requests of the same priority those of the owner with the lowest are admitted, and
//! their prompts read, first. A prompt's token counts once and a generated one twice, as there; what a preemption makes necessary
//! again, and what a prefix has, counts nothing. Whoever comes back after a pause is lifted to the lowest counter among those
//! who are there: what was not used is not saved up.
//!
//! The counters decide who comes next and stop nobody: whoever has begun to decode goes on to the end of its answer, and who gives
//! its memory away is not chosen by them. So the counters of two who both have requests waiting may part by all that the running
//! requests of one of them still generate, and no bound is kept beyond that of the limits of running requests and of their
//! lengths. Those with fewer requests than their share would take leave the rest to the others.

use std::{collections::HashMap, sync::Arc};

/// What a generated token counts, in tokens of prompts.
const DECODED_COST: u64 = 2;

/// Name of an owner; `None` for all requests that come without.
pub(super) type Owner = Option<Arc<str>>;

/// What everybody was served.
#[derive(Default)]
pub(super) struct Ledger {
    accounts: HashMap<Owner, Account>,
}

/// What one owner was served.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    counter: u64,
    /// Requests that have not ended.
    requests: usize,
    /// Tokens that were computed.
    pub(super) tokens: u64,
}

impl Ledger {
    /// A request of `owner` has come.
    pub(super) fn enter(&mut self, owner: &Owner) {
        let active = self.accounts.values().filter(|account| account.requests > 0);
        let lowest = active.map(|account| account.counter).min().unwrap_or(0);
        let account = self.accounts.entry(owner.clone()).or_default();
        if account.requests == 0 {
            account.counter = account.counter.max(lowest);
        }
        account.requests += 1;
    }

    /// A request of `owner` has ended.
    pub(super) fn leave(&mut self, owner: &Owner) {
        if let Some(account) = self.accounts.get_mut(owner) {
            account.requests = account.requests.saturating_sub(1);
        }
        // Debts are among those who are there: with nobody there, they begin anew.
        if self.accounts.values().all(|account| account.requests == 0) {
            self.accounts.values_mut().for_each(|account| account.counter = 0);
        }
    }

    /// So many tokens of prompts and of answers were computed for `owner`.
    pub(super) fn charge(&mut self, owner: &Owner, prompt: usize, decoded: usize) {
        if let Some(account) = self.accounts.get_mut(owner) {
            account.counter += prompt as u64 + DECODED_COST * decoded as u64;
            account.tokens += (prompt + decoded) as u64;
        }
    }

    /// The counter of `owner`.
    pub(super) fn served(&self, owner: &Owner) -> u64 {
        self.accounts.get(owner).map_or(0, |account| account.counter)
    }

    /// All who have had requests.
    pub(super) fn accounts(&self) -> impl Iterator<Item = (&Owner, &Account)> {
        self.accounts.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let [early, late]: [Owner; 2] = [Some("early".into()), Some("late".into())];
        let mut ledger = Ledger::default();
        ledger.enter(&early);
        ledger.charge(&early, 1000, 10);
        ledger.enter(&late);
        assert_eq!((ledger.served(&early), ledger.served(&late)), (1020, 1020));
        ledger.charge(&late, 5, 0);
        // A second request changes nothing.
        ledger.enter(&early);
        assert_eq!((ledger.served(&early), ledger.served(&late)), (1020, 1025));
    }

    #[test]
    fn a_debt_does_not_end_with_a_pause_while_others_are_there() {
        let [a, b]: [Owner; 2] = [Some("a".into()), None];
        let mut ledger = Ledger::default();
        ledger.enter(&a);
        ledger.enter(&b);
        ledger.charge(&a, 500, 0);
        ledger.leave(&a);
        ledger.enter(&a);
        assert_eq!((ledger.served(&a), ledger.served(&b)), (500, 0));
        ledger.leave(&a);
        ledger.leave(&b);
        assert_eq!(ledger.served(&a), 0);
    }
}
