//! Names of prefixes on a disk: hashes of all that their rows depend on.
//!
//! A chain begins with a seed, the hash of what computes the rows: the model, its tokenizer, the instruction set and the version
//! of the program that rounds as it does, how the cache is encoded, and who may use it. Every tile of tokens is hashed with the
//! address before it, so that an address names all tokens up to its own, and the addresses of a prompt say at once how much of it
//! is in the folder.

use std::fmt;

use kvik_kernels::{Isa, attention::TILE_TOKENS};
use kvik_kv::KvShape;
use sha2::{Digest, Sha256};

use crate::prefix::sharing::Scope;

/// Tokens between two addresses of a chain.
pub(crate) const LINK_TOKENS: usize = TILE_TOKENS;

/// The name of a prefix: a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address(pub(crate) [u8; 32]);

impl Address {
    /// The address that [`fmt::Display`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| (byte as char).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
        let mut address = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in address.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What computes the rows of a model's prefixes.
#[derive(Clone)]
pub(crate) struct Origin(Sha256);

impl Origin {
    /// Of a model with this cache and this tokenizer, in this program, on this machine.
    pub(crate) fn new(shape: &KvShape, tokenizer: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("kvik {} {:?}\n", env!("CARGO_PKG_VERSION"), Isa::active()));
        hash.update(shape.identity());
        hash.update((tokenizer.len() as u64).to_le_bytes());
        hash.update(tokenizer);
        Self(hash)
    }

    /// The seed of the chains of those who share.
    pub(crate) fn seed(&self, scope: &Scope) -> Address {
        let (kind, owner) = match scope {
            Scope::Everyone => (0, ""),
            Scope::Nameless => (1, ""),
            Scope::Owner(owner) => (2, &**owner),
        };
        let mut hash = self.0.clone();
        hash.update([kind]);
        hash.update(owner);
        Address(hash.finalize().into())
    }
}

/// The addresses of some tokens, one for every [`LINK_TOKENS`] of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) links: Vec<Address>,
}

impl Chain {
    pub(crate) fn new(seed: Address, tokens: &[u32]) -> Self {
        let mut before = seed;
        let links = tokens.chunks_exact(LINK_TOKENS).map(|tokens| {
            let mut hash = Sha256::new();
            hash.update(before.0);
            tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
            before = Address(hash.finalize().into());
            before
        });
        Self { links: links.collect() }
    }

    /// The address of all tokens.
    pub(crate) fn last(&self) -> Option<Address> {
        self.links.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_all_tokens_before_it_and_what_computed_them() {
        let shape = KvShape::unrotated(Vec::new());
        let origin = Origin::new(&shape, b"words");
        let tokens: Vec<u32> = (0..300).collect();
        let chain = |origin: &Origin, scope: &Scope, tokens: &[u32]| Chain::new(origin.seed(scope), tokens);
        let all = chain(&origin, &Scope::Everyone, &tokens);
        assert_eq!(all.links.len(), 4);
        assert_eq!(chain(&origin, &Scope::Everyone, &tokens[..130]).links, all.links[..2]);
        let mut other = tokens.clone();
        other[70] += 1;
        let other = chain(&origin, &Scope::Everyone, &other);
        assert_eq!(other.links[0], all.links[0]);
        assert!(other.links[1..].iter().all(|link| !all.links.contains(link)));
        let mut named = KvShape::unrotated(Vec::new());
        named.fingerprint = "another".to_owned();
        let elsewhere = [
            chain(&origin, &Scope::Nameless, &tokens),
            chain(&origin, &Scope::Owner("".into()), &tokens),
            chain(&origin, &Scope::Owner("a".into()), &tokens),
            chain(&Origin::new(&shape, b"other words"), &Scope::Everyone, &tokens),
            chain(&Origin::new(&named, b"words"), &Scope::Everyone, &tokens),
        ];
        for (index, chain) in elsewhere.iter().enumerate() {
            assert!(chain.links.iter().all(|link| !all.links.contains(link)));
            assert!(elsewhere[..index].iter().all(|other| other != chain));
        }
    }

    #[test]
    fn addresses_are_written_and_read() {
        let address = Chain::new(Address([7; 32]), &[1; 64]).last().unwrap();
        assert_eq!(Address::parse(&address.to_string()), Some(address));
        for text in ["", "00", &"g".repeat(64), &"é".repeat(32), &address.to_string().to_uppercase()] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }
}
