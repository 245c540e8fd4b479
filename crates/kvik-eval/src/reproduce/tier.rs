//! Tier: the same bits in a bounded part of the RAM, and what that costs per token.
//!
//! What comes from the page cache is copied and checked before attention reads it, so a byte from the file is held to cost at most
//! four times a byte in RAM.

use kvik_engine::Session;

use super::{Experiment, Lab, Results};
use crate::{EvalError, statistics::percentile};

pub(super) struct Tier;

impl Experiment for Tier {
    fn name(&self) -> &'static str {
        "tier"
    }

    fn paper(&self) -> &'static str {
        "after FlexGen, Sheng et al., ICML 2023, arXiv 2303.06865"
    }

    fn claim(&self) -> &'static str {
        "a cache that is larger than its memory lies in a lower tier, and reading the next layer's part of it while one layer computes \
         hides part of the way"
    }

    fn setting(&self) -> &'static str {
        "one sequence of a 135M model on a processor, with a quarter of its cache in RAM and the rest in a file that the system keeps in \
         its page cache; FlexGen moves the caches of large batches between a GPU, RAM and a disk"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        let tokens = lab.pick(2048, 7900);
        let decoded = lab.pick(24, 160);
        let budget = (lab.bf16_bytes(tokens) / 4.0) as usize;
        let pipelines =
            ["full".to_owned(), format!("tier(ram={budget})"), format!("tier(ram={budget},prefetch=no)")];
        let prompt = lab.prose(0, tokens)?;
        let mut sessions = Vec::new();
        for kv in &pipelines {
            lab.say(&format!("reading {tokens} tokens: {kv}"))?;
            sessions.push(lab.read(kv, &prompt)?);
        }
        let [full, ahead, behind] = decode_in_turns(lab, &mut sessions, decoded)?;
        for (kv, times) in pipelines.iter().zip([&full, &ahead, &behind]) {
            results.measured(format!("decoding behind {tokens} tokens"), kv, times.median_ms, "ms");
        }
        for (kv, session) in pipelines.iter().zip(&sessions) {
            let whole = lab.bf16_bytes(tokens + decoded);
            results.measured("RAM over that of a bf16 cache", kv, lab.kv_bytes(session) / whole, "");
            results.measured("file over a bf16 cache", kv, lab.kv_file_bytes(session) / whole, "");
        }
        let different = full.logits.iter().zip(&ahead.logits).filter(|(a, b)| a != b).count();
        results.at_most("logits that differ from those of the full cache", different as f64, 0.0, "");
        let ram = lab.kv_bytes(&sessions[1]) / budget as f64;
        results.at_most("RAM over the budget", ram, 1.0, "");
        results.at_most(
            "a token with a quarter in RAM over one with all",
            ahead.median_ms / full.median_ms,
            2.5,
            "",
        );
        let saved = behind.median_ms / ahead.median_ms;
        results.at_least("a token without reading ahead over one with it", saved, 1.0, "");
        Ok(results)
    }
}

/// What decoding gave and how long it took.
#[derive(Default)]
struct Decoded {
    median_ms: f64,
    /// Bits of the logits of all tokens.
    logits: Vec<u32>,
}

/// Decodes in each session by turns, a few tokens at a time, so that what else the machine does meets all of them.
fn decode_in_turns<const N: usize>(
    lab: &mut Lab<'_>,
    sessions: &mut [Session],
    tokens: usize,
) -> Result<[Decoded; N], EvalError> {
    const TURN: usize = 8;
    let mut decoded: [Decoded; N] = std::array::from_fn(|_| Decoded::default());
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for start in (0..tokens).step_by(TURN) {
        lab.say(&format!("decoding token {start} of {tokens}"))?;
        for ((session, decoded), times) in sessions.iter_mut().zip(&mut decoded).zip(&mut times) {
            for token in start..tokens.min(start + TURN) {
                let started = std::time::Instant::now();
                let id = 1000 + token as u32;
                lab.engine().decode(session, &[id], &mut |_, logits| {
                    decoded.logits.extend(logits.iter().step_by(97).map(|logit| logit.to_bits()));
                })?;
                times.push(1e3 * started.elapsed().as_secs_f64());
            }
        }
    }
    for (decoded, times) in decoded.iter_mut().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        decoded.median_ms = percentile(times, 0.5).unwrap_or(f64::NAN);
    }
    Ok(decoded)
}
