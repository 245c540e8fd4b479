//! Randomness that depends on what it is for and on nothing else: not on threads, batches or order.

/// A number in 0..1 for `keys` under `seed`.
pub(crate) fn uniform(seed: u64, keys: &[u64]) -> f32 {
    let mut x = seed;
    for key in keys {
        // SplitMix64 (Steele et al. 2014).
        x = (x ^ key).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    (x >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::uniform;

    #[test]
    fn draws_are_spread_evenly_and_differ_by_every_key() {
        let mean = (0..4000u64).map(|i| f64::from(uniform(7, &[i / 100, i % 100]))).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert_ne!(uniform(0, &[1, 2]), uniform(0, &[2, 1]));
        assert_ne!(uniform(0, &[1, 2]), uniform(1, &[1, 2]));
    }
}
