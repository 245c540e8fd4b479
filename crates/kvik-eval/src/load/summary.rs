//! What a load measured, in numbers.

use serde::Serialize;

use crate::{
    client::{Exchange, Sample},
    statistics::percentile,
};

/// Points of a plot over time, at most.
const MOMENTS: usize = 60;
/// Kinds of messages of failures that are kept.
const MESSAGES: usize = 5;

/// What a load measured on one server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoadReport {
    /// The server.
    pub target: String,
    /// The model that was asked.
    pub model: String,
    /// The load, in words.
    pub load: String,
    /// True if all of it was sent and waited for.
    pub finished: bool,
    /// Requests that were sent.
    pub requests: usize,
    /// Those with a whole answer.
    pub complete: usize,
    /// The others, by how they ended.
    pub failures: Vec<Failure>,
    /// Seconds from the first request to the end of the last.
    pub seconds: f64,
    /// Tokens of requests with a whole answer.
    pub tokens: Tokens,
    /// How much was done in a second.
    pub throughput: Throughput,
    /// From when a request was due to its first token.
    pub ttft: Option<Milliseconds>,
    /// For each token behind the first, request by request.
    pub tpot: Option<Milliseconds>,
    /// Between pieces of answers that follow each other, all requests together.
    pub itl: Option<Milliseconds>,
    /// From when a request was due to the end of its answer.
    pub latency: Option<Milliseconds>,
    /// How late the client itself was in sending.
    pub lateness: Option<Milliseconds>,
    /// The levels of service that were asked for, and how often they were kept.
    pub levels: Levels,
    /// What the server counted.
    pub server: Option<ServerCounts>,
    /// Over time.
    pub moments: Vec<Moment>,
    /// The server's own counters over time.
    pub samples: Vec<Sample>,
    /// Remarks about the load.
    pub notes: Vec<String>,
}

/// Requests that ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Which.
    pub kind: &'static str,
    /// How many.
    pub requests: usize,
    /// Some of what was said.
    pub messages: Vec<String>,
}

/// Tokens of requests with a whole answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Of the prompts.
    pub prompt: u64,
    /// Those of them that came from a cache.
    pub cached: u64,
    /// Of the answers.
    pub completion: u64,
    /// Of answers as long as they were allowed to be.
    pub wanted: u64,
}

/// How much was done in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Throughput {
    /// Requests with a whole answer.
    pub requests_per_second: f64,
    /// Tokens of their prompts.
    pub prompt_tokens_per_second: f64,
    /// Tokens of their answers.
    pub completion_tokens_per_second: f64,
    /// Both.
    pub total_tokens_per_second: f64,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Milliseconds {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// Nine of ten lie below.
    pub p90: f64,
    /// All but one in twenty do.
    pub p95: f64,
    /// All but one in a hundred do.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// Levels of service. A request keeps them when it has a whole answer and is under each limit that is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Levels {
    /// The limit of the time to the first token.
    pub ttft_ms: Option<f64>,
    /// The limit of the time for each token behind it.
    pub tpot_ms: Option<f64>,
    /// The limit of the time to the whole answer.
    pub latency_ms: Option<f64>,
    /// The share of all requests that keep them.
    pub kept: f64,
    /// Such requests in a second.
    pub goodput_requests_per_second: f64,
    /// Tokens of their answers in a second.
    pub goodput_tokens_per_second: f64,
}

/// What the server counted while it was under load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ServerCounts {
    /// Requests that had to give up their place.
    pub preemptions: Option<f64>,
    /// The most requests in a batch that were seen.
    pub most_running: Option<f64>,
    /// The most requests that waited.
    pub most_waiting: Option<f64>,
    /// The largest share of the memory for keys and values in use.
    pub most_kv_share: Option<f64>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// Its middle, in seconds since the load began.
    pub at_s: f64,
    /// Requests that were due, in a second.
    pub arrivals_per_second: f64,
    /// Tokens of answers that came, in a second.
    pub completion_tokens_per_second: f64,
    /// Requests under way, on average.
    pub under_way: f64,
    /// The median time to the first token of requests that were due.
    pub ttft_p50_ms: Option<f64>,
    /// The 99th percentile of it.
    pub ttft_p99_ms: Option<f64>,
    /// The median time between pieces of answers that came.
    pub itl_p50_ms: Option<f64>,
    /// The 99th percentile of it.
    pub itl_p99_ms: Option<f64>,
    /// Prompt tokens from a cache as a share of all, of requests that were due.
    pub cached_share: Option<f64>,
    /// Requests that were due and have no whole answer.
    pub failed: usize,
}

impl LoadReport {
    /// Of what happened, in the order of sending. `levels` has the limits.
    pub fn new(
        target: &str,
        model: &str,
        load: &str,
        exchanges: &[Exchange],
        samples: Vec<Sample>,
        levels: Levels,
    ) -> Self {
        let complete: Vec<&Exchange> = exchanges.iter().filter(|exchange| exchange.is_complete()).collect();
        let begin = exchanges.iter().map(|exchange| exchange.sent_s).fold(f64::INFINITY, f64::min);
        let end = exchanges.iter().map(|exchange| exchange.end_s).fold(begin, f64::max);
        let seconds = if exchanges.is_empty() { 0.0 } else { end - begin };
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let sum = |of: fn(&Exchange) -> u64| complete.iter().map(|exchange| of(exchange)).sum::<u64>();
        let tokens = Tokens {
            prompt: sum(|exchange| exchange.prompt_tokens),
            cached: sum(|exchange| exchange.cached_tokens),
            completion: sum(|exchange| exchange.completion_tokens),
            wanted: sum(|exchange| exchange.wanted_tokens),
        };
        let gaps = complete.iter().flat_map(|exchange| &exchange.gaps_s).map(|&gap| f64::from(gap));
        Self {
            target: target.to_owned(),
            model: model.to_owned(),
            load: load.to_owned(),
            finished: true,
            requests: exchanges.len(),
            complete: complete.len(),
            failures: failures(exchanges),
            seconds,
            tokens,
            throughput: Throughput {
                requests_per_second: per_second(complete.len() as u64),
                prompt_tokens_per_second: per_second(tokens.prompt),
                completion_tokens_per_second: per_second(tokens.completion),
                total_tokens_per_second: per_second(tokens.prompt + tokens.completion),
            },
            ttft: Milliseconds::of(complete.iter().filter_map(|exchange| exchange.ttft_s())),
            tpot: Milliseconds::of(complete.iter().filter_map(|exchange| exchange.tpot_s())),
            itl: Milliseconds::of(gaps),
            latency: Milliseconds::of(complete.iter().map(|exchange| exchange.latency_s())),
            lateness: Milliseconds::of(exchanges.iter().map(|exchange| exchange.sent_s - exchange.due_s)),
            levels: levels.measured(exchanges, seconds),
            server: ServerCounts::of(&samples),
            moments: moments(exchanges, begin, seconds),
            samples,
            notes: Vec::new(),
        }
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> usize {
        self.requests - self.complete
    }

    /// Prompt tokens from a cache, as a share of all; `None` when the server does not count prompts.
    pub fn cached_share(&self) -> Option<f64> {
        (self.tokens.prompt > 0).then(|| self.tokens.cached as f64 / self.tokens.prompt as f64)
    }
}

impl Milliseconds {
    /// Of times in seconds; `None` if there are none.
    pub fn of(seconds: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = seconds.map(|seconds| seconds * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| percentile(&sorted, share);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { mean, p50: at(0.5)?, p90: at(0.9)?, p95: at(0.95)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

impl Levels {
    /// True if a limit is set.
    pub fn any(&self) -> bool {
        [self.ttft_ms, self.tpot_ms, self.latency_ms].iter().any(Option::is_some)
    }

    fn keeps(&self, exchange: &Exchange) -> bool {
        // An answer of one token has no time between tokens to be too long.
        let under = |limit: Option<f64>, seconds: f64| limit.is_none_or(|limit| seconds * 1000.0 <= limit);
        exchange.is_complete()
            && under(self.ttft_ms, exchange.ttft_s().unwrap_or_else(|| exchange.latency_s()))
            && under(self.tpot_ms, exchange.tpot_s().unwrap_or(0.0))
            && under(self.latency_ms, exchange.latency_s())
    }

    fn measured(self, exchanges: &[Exchange], seconds: f64) -> Self {
        let kept: Vec<&Exchange> = exchanges.iter().filter(|exchange| self.keeps(exchange)).collect();
        let tokens: u64 = kept.iter().map(|exchange| exchange.completion_tokens).sum();
        let span = seconds.max(f64::MIN_POSITIVE);
        Self {
            kept: kept.len() as f64 / exchanges.len().max(1) as f64,
            goodput_requests_per_second: kept.len() as f64 / span,
            goodput_tokens_per_second: tokens as f64 / span,
            ..self
        }
    }
}

impl ServerCounts {
    fn of(samples: &[Sample]) -> Option<Self> {
        let (first, last) = (samples.first()?, samples.last()?);
        let most = |of: fn(&Sample) -> Option<f64>| samples.iter().filter_map(of).reduce(f64::max);
        Some(Self {
            preemptions: last.preemptions.map(|end| end - first.preemptions.unwrap_or(0.0)),
            most_running: most(|sample| sample.running),
            most_waiting: most(|sample| sample.waiting),
            most_kv_share: most(|sample| sample.kv_share),
        })
    }
}

fn failures(exchanges: &[Exchange]) -> Vec<Failure> {
    let mut failures: Vec<Failure> = Vec::new();
    for outcome in
        exchanges.iter().map(|exchange| &exchange.outcome).filter(|outcome| outcome.name() != "complete")
    {
        let kind = outcome.name();
        let place = failures.iter().position(|failure| failure.kind == kind).unwrap_or_else(|| {
            failures.push(Failure { kind, requests: 0, messages: Vec::new() });
            failures.len() - 1
        });
        let failure = &mut failures[place];
        failure.requests += 1;
        if let Some(message) = outcome.message()
            && failure.messages.len() < MESSAGES
            && !failure.messages.iter().any(|said| said == message)
        {
            failure.messages.push(message.to_owned());
        }
    }
    failures
}

fn moments(exchanges: &[Exchange], begin: f64, seconds: f64) -> Vec<Moment> {
    if seconds <= 0.0 {
        return Vec::new();
    }
    let count = exchanges.len().clamp(1, MOMENTS);
    let width = seconds / count as f64;
    let place = |at: f64| (((at - begin) / width).max(0.0) as usize).min(count - 1);
    #[derive(Clone, Default)]
    struct Bin {
        arrivals: usize,
        failed: usize,
        tokens: f64,
        under_way_s: f64,
        ttft: Vec<f64>,
        gaps: Vec<f64>,
        prompt: u64,
        cached: u64,
    }
    let mut bins = vec![Bin::default(); count];
    for exchange in exchanges {
        let bin = &mut bins[place(exchange.due_s)];
        bin.arrivals += 1;
        bin.failed += usize::from(!exchange.is_complete());
        bin.ttft.extend(exchange.ttft_s());
        bin.prompt += exchange.prompt_tokens;
        bin.cached += exchange.cached_tokens;
        let (from, to) = (exchange.sent_s - begin, exchange.end_s - begin);
        for index in place(exchange.sent_s)..=place(exchange.end_s) {
            let left = index as f64 * width;
            bins[index].under_way_s += (to.min(left + width) - from.max(left)).max(0.0);
        }
        if let Some(first) = exchange.first_s {
            // Pieces may hold several tokens; they are spread over the pieces evenly.
            let each = exchange.completion_tokens as f64 / (exchange.gaps_s.len() + 1) as f64;
            let mut at = first;
            bins[place(at)].tokens += each;
            for &gap in &exchange.gaps_s {
                at += f64::from(gap);
                bins[place(at)].tokens += each;
                bins[place(at)].gaps.push(f64::from(gap));
            }
        }
    }
    let moment = |(index, bin): (usize, Bin)| {
        let (ttft, itl) = (Milliseconds::of(bin.ttft.into_iter()), Milliseconds::of(bin.gaps.into_iter()));
        Moment {
            at_s: (index as f64 + 0.5) * width,
            arrivals_per_second: bin.arrivals as f64 / width,
            completion_tokens_per_second: bin.tokens / width,
            under_way: bin.under_way_s / width,
            ttft_p50_ms: ttft.map(|ms| ms.p50),
            ttft_p99_ms: ttft.map(|ms| ms.p99),
            itl_p50_ms: itl.map(|ms| ms.p50),
            itl_p99_ms: itl.map(|ms| ms.p99),
            cached_share: (bin.prompt > 0).then(|| bin.cached as f64 / bin.prompt as f64),
            failed: bin.failed,
        }
    };
    bins.into_iter().enumerate().map(moment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;

    /// Due at `due`, first token 0.1 s later, then three more every 0.02 s.
    fn answered(due: f64) -> Exchange {
        Exchange {
            first_s: Some(due + 0.1),
            last_s: Some(due + 0.16),
            end_s: due + 0.17,
            gaps_s: vec![0.02; 3],
            prompt_tokens: 100,
            cached_tokens: 25,
            completion_tokens: 4,
            outcome: Outcome::Complete,
            ..Exchange::due(due, due + 0.001, 8)
        }
    }

    #[test]
    fn the_report_is_the_arithmetic_of_its_exchanges() {
        let mut exchanges: Vec<Exchange> = (0..10).map(|index| answered(f64::from(index))).collect();
        exchanges[3].outcome = Outcome::Disconnected;
        exchanges[4].outcome = Outcome::Refused { status: 400, message: "too long".into() };
        exchanges[5].outcome = Outcome::Refused { status: 400, message: "too long".into() };
        exchanges[6].first_s = Some(6.5); // slow
        let levels = Levels { ttft_ms: Some(200.0), tpot_ms: Some(25.0), ..Levels::default() };
        let report = LoadReport::new("http://x", "m", "test", &exchanges, Vec::new(), levels);
        assert_eq!((report.requests, report.complete, report.failed()), (10, 7, 3));
        let kinds: Vec<_> = report.failures.iter().map(|f| (f.kind, f.requests, f.messages.len())).collect();
        assert_eq!(kinds, [("disconnected", 1, 0), ("refused", 2, 1)]);
        assert!((report.seconds - 9.169).abs() < 1e-9);
        assert_eq!(report.tokens, Tokens { prompt: 700, cached: 175, completion: 28, wanted: 56 });
        assert_eq!(report.cached_share(), Some(0.25));
        assert!((report.throughput.total_tokens_per_second - 728.0 / 9.169).abs() < 1e-9);
        let (ttft, tpot) = (report.ttft.unwrap(), report.tpot.unwrap());
        assert!((ttft.p50 - 100.0).abs() < 1e-6 && (ttft.max - 500.0).abs() < 1e-6, "{ttft:?}");
        assert!((tpot.p50 - 20.0).abs() < 1e-6 && (report.itl.unwrap().p50 - 20.0).abs() < 1e-4);
        assert!((report.lateness.unwrap().p99 - 1.0).abs() < 1e-6);
        assert!((report.levels.kept - 0.6).abs() < 1e-12);
        assert!((report.levels.goodput_requests_per_second - 6.0 / 9.169).abs() < 1e-9);
    }

    #[test]
    fn moments_add_up_to_the_whole() {
        let exchanges: Vec<Exchange> = (0..200).map(|index| answered(f64::from(index) * 0.05)).collect();
        let report = LoadReport::new("http://x", "m", "test", &exchanges, Vec::new(), Levels::default());
        let width = report.seconds / report.moments.len() as f64;
        let sum = |of: fn(&Moment) -> f64| report.moments.iter().map(of).sum::<f64>() * width;
        assert!((sum(|m| m.arrivals_per_second) - 200.0).abs() < 1e-6);
        assert!((sum(|m| m.completion_tokens_per_second) - 800.0).abs() < 1e-6);
        assert!((sum(|m| m.under_way) - 200.0 * 0.169).abs() < 1e-6);
        assert!(report.levels.kept == 1.0 && !report.levels.any());
        let empty = LoadReport::new("http://x", "m", "test", &[], Vec::new(), Levels::default());
        assert!(
            empty.ttft.is_none() && empty.moments.is_empty() && empty.throughput == Throughput::default()
        );
    }

    #[test]
    fn preemptions_are_those_of_this_load() {
        let sample = |at_s: f64, preemptions: f64, running: f64| Sample {
            at_s,
            preemptions: Some(preemptions),
            running: Some(running),
            ..Sample::default()
        };
        let samples = vec![sample(0.0, 5.0, 1.0), sample(1.0, 6.0, 4.0), sample(2.0, 8.0, 2.0)];
        let report = LoadReport::new("http://x", "m", "test", &[answered(0.0)], samples, Levels::default());
        let server = report.server.unwrap();
        assert_eq!(
            (server.preemptions, server.most_running, server.most_waiting),
            (Some(3.0), Some(4.0), None)
        );
    }
}
