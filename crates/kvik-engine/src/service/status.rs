//! What a service is doing, as numbers.

use crate::prefix::{PrefixStatistics, PrefixTreeStatus};
use kvik_kv::EncodingBytes;
use std::{borrow::Cow, time::Duration};

/// Upper ends of the histograms' buckets, in seconds; the last bucket has no end.
pub const BUCKET_SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Values that percentiles are taken of: the latest.
const REMEMBERED: usize = 1024;

/// A snapshot of a service.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Status {
    /// False once the service has failed: it then computes nothing any more.
    pub healthy: bool,
    /// Why it failed.
    pub failure: Option<String>,
    /// True if no new requests are taken.
    pub draining: bool,
    /// Since the service started.
    pub uptime_seconds: f64,
    /// Requests that are being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Those who have requests, or had some.
    pub owners: Vec<OwnerStatus>,
    /// What the last forward pass was made of.
    pub last_step: Batch,
    /// What steps cost.
    pub pace: PaceStatus,
    /// Memory of keys and values.
    pub kv: KvStatus,
    /// Prefixes that requests share.
    pub prefixes: PrefixStatistics,
    /// The tree of them, for each who shares, as far as it was used last.
    pub prefix_trees: Vec<PrefixTreeStatus>,
    /// Sums since the start.
    pub totals: Totals,
    /// Time of a step: schedule, forward, sample, publish.
    pub step_seconds: Distribution,
    /// Time between two tokens of a request.
    pub inter_token_seconds: Distribution,
    /// From the arrival of a request to its first token.
    pub time_to_first_token_seconds: Distribution,
    /// From the arrival of a request until it is first computed.
    pub queue_seconds: Distribution,
}

/// The requests of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OwnerStatus {
    /// Its name; `None` for requests that came without.
    pub owner: Option<String>,
    /// Requests that are being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Tokens that were computed for it: prompts and answers.
    pub served_tokens: u64,
}

/// What a forward pass is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Batch {
    /// Sequences in it.
    pub sequences: usize,
    /// Tokens that continue answers.
    pub decode_tokens: usize,
    /// Tokens of prompts.
    pub prefill_tokens: usize,
    /// Tokens of answers that are computed again after a preemption.
    pub replay_tokens: usize,
}

/// What steps cost, as far as the latest ones tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PaceStatus {
    /// Seconds of a step, whatever it computes.
    pub step_seconds: f64,
    /// Seconds of each token that continues an answer.
    pub decoded_seconds: f64,
    /// Seconds of each token of a prompt.
    pub read_seconds: f64,
    /// Seconds that a step takes besides if it has both.
    pub both_seconds: f64,
    /// Sequences that decode together, as the mean over tokens.
    pub usual_sequences: f64,
}

/// Memory of keys and values.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct KvStatus {
    /// Bytes of RAM that they may take.
    pub budget_bytes: usize,
    /// Bytes of RAM that they take.
    pub ram_bytes: usize,
    /// Bytes of files that they take, those that are in RAM as well included.
    pub file_bytes: usize,
    /// The same by what the bytes are and where they lie: the parts of `ram_bytes` and of `file_bytes`.
    pub encodings: Vec<EncodingStatus>,
    /// The same by pipeline, of what is being computed. What sequences share counts in equal parts.
    pub pipelines: Vec<PipelineStatus>,
}

/// The bytes of one encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct EncodingStatus {
    /// What they are: `bf16`, `bf16-copies`, `merged-layers`, `affine-2-bits` and the like, `low-rank`; `moved-caches` are those of
    /// requests that gave way.
    pub encoding: Cow<'static, str>,
    /// Bytes of RAM.
    pub ram_bytes: usize,
    /// Bytes of files, those that are in RAM as well included.
    pub file_bytes: usize,
}

/// The sequences of one pipeline that are being computed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PipelineStatus {
    /// The pipeline.
    pub pipeline: String,
    /// Sequences.
    pub sequences: usize,
    /// Tokens that they have read and generated.
    pub tokens: usize,
    /// Bytes of RAM that they take.
    pub ram_bytes: usize,
    /// Bytes of files that they take.
    pub file_bytes: usize,
    /// Bytes that the same tokens would take in an uncompressed bf16 cache.
    pub uncompressed_bf16_bytes: usize,
}

/// Sums since the start of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Totals {
    /// Requests that were accepted.
    pub requests: u64,
    /// Requests that were turned away because too many waited.
    pub overloaded: u64,
    /// Requests that were done.
    pub finished: u64,
    /// Requests that could not be done.
    pub failed: u64,
    /// Requests that nobody waited for any more.
    pub cancelled: u64,
    /// Requests whose time was over.
    pub overdue: u64,
    /// How often a request had to give its memory to others.
    pub preemptions: u64,
    /// How often the cache of such a request was moved to a file.
    pub preemptions_to_tier: u64,
    /// Tokens that came back from such a file instead of being computed again.
    pub restored_tokens: u64,
    /// Forward passes.
    pub steps: u64,
    /// Tokens of prompts that were computed, those that a preemption made necessary included.
    pub prompt_tokens: u64,
    /// Tokens of prompts that need not be computed, because another request had them.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub completion_tokens: u64,
}

/// How long something takes.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Distribution {
    /// How often it was measured.
    pub count: u64,
    /// The sum of all.
    pub sum_seconds: f64,
    /// Half of the latest are below.
    pub p50: f64,
    /// Nine in ten of the latest are below.
    pub p90: f64,
    /// All but one in a hundred of the latest are below.
    pub p99: f64,
    /// The longest of the latest.
    pub max: f64,
    /// How many were at most as long as each of [`BUCKET_SECONDS`], since the start.
    pub buckets: Vec<u64>,
}

impl EncodingStatus {
    /// Whole caches of requests that gave way, in files.
    pub(super) fn moved(file_bytes: usize) -> Self {
        Self { encoding: Cow::Borrowed("moved-caches"), ram_bytes: 0, file_bytes }
    }
}

impl From<EncodingBytes> for EncodingStatus {
    fn from(EncodingBytes { encoding, ram_bytes, file_bytes }: EncodingBytes) -> Self {
        Self { encoding, ram_bytes, file_bytes }
    }
}

/// Measures one thing.
#[derive(Default)]
pub(super) struct Meter {
    count: u64,
    sum: f64,
    latest: Vec<f32>,
    buckets: [u64; BUCKET_SECONDS.len()],
}

impl Meter {
    pub(super) fn record(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        if self.latest.len() < REMEMBERED {
            self.latest.push(seconds as f32);
        } else {
            self.latest[self.count as usize % REMEMBERED] = seconds as f32;
        }
        self.count += 1;
        self.sum += seconds;
        if let Some(bucket) = BUCKET_SECONDS.iter().position(|&end| seconds <= end) {
            self.buckets[bucket] += 1;
        }
    }

    pub(super) fn distribution(&self) -> Distribution {
        let mut latest = self.latest.clone();
        latest.sort_unstable_by(f32::total_cmp);
        let rank = |share: f64| {
            let index = (share * latest.len() as f64).ceil() as usize;
            latest.get(index.saturating_sub(1)).copied().map_or(0.0, f64::from)
        };
        let mut below = 0;
        let cumulative = self.buckets.iter().map(|&count| {
            below += count;
            below
        });
        Distribution {
            count: self.count,
            sum_seconds: self.sum,
            p50: rank(0.5),
            p90: rank(0.9),
            p99: rank(0.99),
            max: rank(1.0),
            buckets: cumulative.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_and_sums_of_all() {
        let mut meter = Meter::default();
        (0..500).for_each(|_| meter.record(Duration::from_secs(100)));
        (1..=REMEMBERED as u64).for_each(|n| meter.record(Duration::from_millis(n)));
        let distribution = meter.distribution();
        assert_eq!(distribution.count, 500 + REMEMBERED as u64);
        let expected = 50_000.0 + (REMEMBERED * (REMEMBERED + 1) / 2) as f64 / 1000.0;
        assert!((distribution.sum_seconds - expected).abs() < 1e-6);
        for (got, expected) in
            [(distribution.p50, 0.512), (distribution.p99, 1.014), (distribution.max, 1.024)]
        {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
        // 1 ms, 2 ms, up to 1.024 s; and 500 beyond all.
        assert_eq!(distribution.buckets[..4], [1, 2, 5, 10]);
        assert_eq!(distribution.buckets.last(), Some(&(REMEMBERED as u64)));
        assert_eq!(Meter::default().distribution().p99, 0.0);
    }
}
