//! Who may begin with whose prefixes.

use std::sync::Arc;

/// Whether requests share the prefixes of their prompts. Whoever shares can find out by the time to the first token what others
/// have asked, so keys that do not trust each other should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixSharing {
    /// Nothing is kept.
    Off,
    /// Requests of the same owner share.
    #[default]
    PerKey,
    /// All requests share.
    All,
}

/// Requests that share prefixes with each other and with nobody else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All.
    Everyone,
    /// Those without an owner.
    Nameless,
    /// Those of one owner.
    Owner(Arc<str>),
}

impl PrefixSharing {
    /// Whom a request of `owner` shares with; `None` for nobody.
    pub fn scope(self, owner: Option<&Arc<str>>) -> Option<Scope> {
        match (self, owner) {
            (Self::Off, _) => None,
            (Self::All, _) => Some(Scope::Everyone),
            (Self::PerKey, None) => Some(Scope::Nameless),
            (Self::PerKey, Some(owner)) => Some(Scope::Owner(Arc::clone(owner))),
        }
    }
}
