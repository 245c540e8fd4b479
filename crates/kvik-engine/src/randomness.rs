//! Counter-based randomness: a random number is a pure function of (seed, what it is for, index).
//!
//! A generator with a state gives numbers in the order in which they are asked for, so results change with batching
//! and with threads. Here the number for token 17 of a sequence is the same whoever asks, and whenever.
//!
//! The function is Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011. Ten rounds of a multiply-and-swap network turn a 128-bit counter and a 64-bit key into 128 bits
//! that pass the BigCrush battery.

use std::hash::{BuildHasher, RandomState};

/// What a random number is for: two purposes never share numbers, even with the same seed and index.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Drawing the token at a position of a sequence.
    Token = 0,
}

/// A uniform number in `[0, 1)` with 53 random bits.
pub(crate) fn uniform(seed: u64, purpose: Purpose, index: u64) -> f64 {
    let counter = [index as u32, (index >> 32) as u32, purpose as u32, 0];
    let [low, high, ..] = philox4x32_10(counter, [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 * 2f64.powi(-53)
}

/// A seed that differs from call to call, from the entropy that the standard library keeps for its hash maps.
pub(crate) fn fresh_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// The multipliers and the Weyl increments of the key (the golden ratio and sqrt(3) - 1) are the paper's.
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the paper's authors publish with their Random123 library.
    #[test]
    fn philox_gives_the_published_answers() {
        let pi = ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        for ((counter, key), answer) in [
            (([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            (([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]),
        ] {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let mut counts = [0u32; 10];
        for index in 0..10_000 {
            counts[(uniform(7, Purpose::Token, index) * 10.0) as usize] += 1;
        }
        // Binomial(10000, 0.1): mean 1000, deviation 30; six deviations.
        assert!(counts.iter().all(|&count| count.abs_diff(1000) < 180), "{counts:?}");
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
