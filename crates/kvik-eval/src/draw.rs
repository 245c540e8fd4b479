//! Random choices that depend on (seed, purpose, index) alone.
//!
//! An item of a task is a pure function of its seed, its name and its number: whoever generates it, in whatever order,
//! gets the same item. A [`Draw`] is SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014) started at a hash of the three; it is used for choosing words and numbers, not for
//! anything that must resist an adversary.

/// The golden ratio in 64 bits: SplitMix64's increment.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A stream of random choices.
#[derive(Clone, Debug)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// The stream for the `index`-th of whatever `purpose` names, under `seed`.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Self {
        let named = purpose.bytes().fold(mix(seed ^ GOLDEN), |hash, byte| mix(hash ^ u64::from(byte)));
        Self { state: mix(named ^ index.wrapping_mul(GOLDEN)) }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number from 0 up to, but not, 1, in steps of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number below `end`, each equally likely (but for 2^-64 of bias a step); 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.bits()) * end as u128) >> 64) as usize
    }

    /// A number of exactly `digits` decimal digits, at most 18, the first of which is not 0.
    pub fn number(&mut self, digits: u32) -> u64 {
        let low = 10u64.pow(digits.clamp(1, 18) - 1);
        low + self.below(9 * low as usize) as u64
    }

    /// One of `options`; `None` when there are none.
    pub fn pick<'a, T>(&mut self, options: &'a [T]) -> Option<&'a T> {
        options.get(self.below(options.len()))
    }

    /// The place of one of `weights`, which are not negative, each as likely as its share of their sum; `None` when none is
    /// above 0.
    pub fn weighted(&mut self, weights: &[f64]) -> Option<usize> {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        let mut possible = weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        let found = possible.clone().find(|(_, weight)| {
            left -= **weight;
            left < 0.0
        });
        // The sum may be rounded up.
        found.or_else(|| possible.next_back()).map(|(place, _)| place)
    }

    /// Brings `items` into a random order, each equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }

    /// `count` different numbers below `end` in random order; all of them when there are fewer.
    pub fn distinct(&mut self, count: usize, end: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..end).collect();
        let count = count.min(end);
        for at in 0..count {
            all.swap(at, at + self.below(end - at));
        }
        all.truncate(count);
        all
    }
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_known_answers_of_splitmix64() {
        // Vigna's C reference, seeded with 1234567.
        let mut draw = Draw { state: 1_234_567 };
        assert_eq!(
            [draw.bits(), draw.bits(), draw.bits()],
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn streams_differ_by_seed_purpose_and_index_and_repeat_otherwise() {
        let first = |seed, purpose, index| Draw::new(seed, purpose, index).bits();
        let all: HashSet<u64> =
            [first(1, "a", 0), first(2, "a", 0), first(1, "b", 0), first(1, "a", 1)].into_iter().collect();
        assert_eq!(all.len(), 4);
        assert_eq!(first(1, "a", 0), first(1, "a", 0));
    }

    #[test]
    fn choices_are_even_and_permutations_complete() {
        let mut draw = Draw::new(7, "test", 0);
        let mut counts = [0u32; 10];
        (0..10_000).for_each(|_| counts[draw.below(10)] += 1);
        // Binomial(10000, 0.1): deviation 30; six deviations.
        assert!(counts.iter().all(|count| count.abs_diff(1000) < 180), "{counts:?}");
        let mut shuffled: Vec<usize> = (0..50).collect();
        draw.shuffle(&mut shuffled);
        assert!(shuffled.windows(2).any(|pair| pair[0] > pair[1]));
        shuffled.sort_unstable();
        assert_eq!(shuffled, (0..50).collect::<Vec<_>>());
        let some: HashSet<usize> = draw.distinct(20, 25).into_iter().collect();
        assert!(some.len() == 20 && some.iter().all(|&n| n < 25));
        assert_eq!(draw.distinct(9, 3).len(), 3);
        assert!((0..100).all(|_| (10_000..100_000).contains(&draw.number(5))));
        assert_eq!(draw.pick::<u8>(&[]), None);
        let mut counts = [0u32; 4];
        (0..10_000).for_each(|_| counts[draw.weighted(&[0.0, 3.0, 1.0, 0.0]).unwrap()] += 1);
        // Binomial(10000, 0.75): deviation 43; six deviations.
        assert!(counts[1].abs_diff(7500) < 260 && counts[1] + counts[2] == 10_000, "{counts:?}");
        assert_eq!((draw.weighted(&[]), draw.weighted(&[0.0])), (None, None));
        let units: Vec<f64> = (0..10_000).map(|_| draw.unit()).collect();
        assert!(units.iter().all(|unit| (0.0..1.0).contains(unit)));
        // Deviation of the mean: 1 / sqrt(12 * 10000) = 0.0029; six deviations.
        assert!((units.iter().sum::<f64>() / 10_000.0 - 0.5).abs() < 0.0173);
    }
}
