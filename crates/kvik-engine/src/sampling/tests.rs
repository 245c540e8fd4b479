//! The sampler against the definitions of its filters, and its frequencies against the probabilities.

use super::*;
use proptest::prelude::*;

const OFF: SamplingOptions = SamplingOptions {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    repeat_last_n: 0,
    seed: Some(1),
};

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&logit| (f64::from(logit - max) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

fn kept(logits: &[f32], options: &SamplingOptions) -> Vec<u32> {
    let mut candidates = Vec::new();
    filter(logits, max_logit(logits).unwrap(), options, &mut candidates);
    candidates.iter().map(|candidate| candidate.id).collect()
}

fn ranked(logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

proptest! {
    #[test]
    fn top_k_then_top_p_then_min_p_keep_what_their_definitions_say(
        logits in proptest::collection::vec(-8f32..8.0, 1..600),
        top_k in 0usize..700, top_p in 0.01f32..1.0, min_p in 0f32..1.0,
    ) {
        let order = ranked(&logits);
        let of_top_k = &order[..if top_k == 0 { order.len() } else { top_k.min(order.len()) }];
        let restricted: Vec<f32> = of_top_k.iter().map(|&id| logits[id as usize]).collect();
        let probabilities = softmax(&restricted, 1.0);

        // top-p: the shortest prefix that reaches top_p, up to the rounding of f32 exponentials.
        let nucleus = kept(&logits, &SamplingOptions { top_k, top_p, ..OFF });
        let n = nucleus.len();
        prop_assert_eq!(&nucleus, &of_top_k[..n]);
        let reached: f64 = probabilities[..n].iter().sum();
        let before: f64 = probabilities[..n - 1].iter().sum();
        prop_assert!(n == of_top_k.len() || reached >= f64::from(top_p) - 1e-5);
        prop_assert!(before < f64::from(top_p) + 1e-5);

        // min-p: on what is left, by the ratio to the most likely token.
        let survivors = kept(&logits, &SamplingOptions { top_k, top_p, min_p, ..OFF });
        prop_assert_eq!(&survivors, &nucleus[..survivors.len()]);
        for (rank, probability) in probabilities[..n].iter().enumerate() {
            let ratio = probability / probabilities[0];
            let low = f64::from(min_p);
            let right = if rank < survivors.len() { ratio >= low - 1e-5 } else { ratio < low + 1e-5 };
            prop_assert!(right, "rank {rank} has ratio {ratio}, {} stay", survivors.len());
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(values in proptest::collection::vec(-3i8..3, 1..50)) {
        let logits: Vec<f32> = values.iter().map(|&value| f32::from(value)).collect();
        let mut sampler = Sampler::new(SamplingOptions::greedy(), logits.len()).unwrap();
        prop_assert_eq!(sampler.sample(&logits, &[]), Some(ranked(&logits)[0]));
    }

    /// At a temperature near zero and at top-k 1 every draw is the greedy one (with distinct logits).
    #[test]
    fn the_limits_of_sampling_are_greedy(seed: u64, peak in 0usize..40) {
        let mut logits: Vec<f32> = (0..40).map(|i| (i as f32 * 0.37).sin()).collect();
        logits[peak] = 2.0;
        for options in [
            SamplingOptions { temperature: 1e-6, seed: Some(seed), ..OFF },
            SamplingOptions { top_k: 1, seed: Some(seed), ..OFF },
            SamplingOptions { min_p: 1.0, seed: Some(seed), ..OFF },
            SamplingOptions { top_p: 1e-6, seed: Some(seed), ..OFF },
        ] {
            prop_assert_eq!(Sampler::new(options, 40).unwrap().sample(&logits, &[]), Some(peak as u32));
        }
    }
}

/// Pearson's statistic of `draws` draws against `probabilities`.
fn chi_square(options: SamplingOptions, logits: &[f32], probabilities: &[f64], draws: usize) -> f64 {
    let mut sampler = Sampler::new(options, logits.len()).unwrap();
    let history = vec![0; draws];
    let mut counts = vec![0f64; logits.len()];
    for position in 0..draws {
        counts[sampler.sample(logits, &history[..position]).unwrap() as usize] += 1.0;
    }
    let terms = counts.iter().zip(probabilities).map(|(&count, &probability)| {
        let expected = probability * draws as f64;
        if expected == 0.0 { count * f64::INFINITY } else { (count - expected).powi(2) / expected }
    });
    terms.filter(|term| !term.is_nan()).sum()
}

#[test]
fn frequencies_match_the_probabilities() {
    let logits: Vec<f32> = (0..20).map(|i| (i as f32 * 1.7).sin() * 2.0).collect();
    let hot = SamplingOptions { temperature: 1.5, ..OFF };
    // 19 degrees of freedom: the statistic exceeds 60 with a probability of 4e-6.
    let statistic = chi_square(hot.clone(), &logits, &softmax(&logits, 1.5), 100_000);
    assert!(statistic < 60.0, "{statistic}");
    // The bound has teeth: a temperature wrong by 5 % is far outside.
    let wrong = chi_square(hot, &logits, &softmax(&logits, 1.575), 100_000);
    assert!(wrong > 120.0, "{wrong}");
}

#[test]
fn frequencies_match_after_the_filters() {
    let logits: Vec<f32> = (0..200).map(|i| (i as f32 * 1.7).sin() * 3.0).collect();
    let options = SamplingOptions { temperature: 0.7, top_k: 12, top_p: 0.8, ..OFF };
    let survivors = kept(&logits, &options);
    assert!((2..12).contains(&survivors.len()));
    let masked: Vec<f32> = (0..200)
        .map(|id| if survivors.contains(&id) { logits[id as usize] } else { f32::NEG_INFINITY })
        .collect();
    let statistic = chi_square(options, &logits, &softmax(&masked, 0.7), 50_000);
    assert!(statistic < 50.0, "{statistic}");
}

#[test]
fn a_draw_depends_on_the_seed_and_the_position_only() {
    let logits = vec![0.0; 1000];
    let draw = |seed, position: usize| {
        let options = SamplingOptions { seed: Some(seed), ..OFF };
        Sampler::new(options, 1000).unwrap().sample(&logits, &vec![0; position]).unwrap()
    };
    let mut one_after_the_other = Sampler::new(SamplingOptions { seed: Some(5), ..OFF }, 1000).unwrap();
    let drawn: Vec<u32> =
        (0..20).map(|n| one_after_the_other.sample(&logits, &vec![0; n]).unwrap()).collect();
    let alone: Vec<u32> = (0..20).rev().map(|n| draw(5, n)).collect();
    assert!(drawn.iter().eq(alone.iter().rev()));
    assert_ne!(drawn, (0..20).map(|n| draw(6, n)).collect::<Vec<_>>());
}

#[test]
fn logits_without_a_choice_give_none() {
    for options in [OFF, SamplingOptions::greedy()] {
        let mut sampler = Sampler::new(options, 2).unwrap();
        assert_eq!(sampler.sample(&[f32::NAN, f32::NAN], &[]), None);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2], &[]), None);
        assert_eq!(sampler.sample(&[f32::INFINITY, 0.0], &[]), None);
        assert_eq!(sampler.sample(&[f32::NAN, -3.0], &[]), Some(1));
    }
}

#[test]
fn the_penalty_comes_before_the_choice() {
    let mut sampler = Sampler::new(
        SamplingOptions { repeat_penalty: 1.5, repeat_last_n: 2, ..SamplingOptions::greedy() },
        3,
    )
    .unwrap();
    let logits = [3.0, 2.5, -1.0];
    assert_eq!(sampler.sample(&logits, &[]), Some(0));
    assert_eq!(sampler.sample(&logits, &[0]), Some(1));
    assert_eq!(sampler.sample(&logits, &[0, 2, 2]), Some(0));
}
