//! Figures for Prometheus: what was asked, how long it took, what the service holds.
//!
//! Counters and histograms are filled as requests pass; what the service holds right now is looked up when the page is
//! read. Labels come from small fixed sets (routes, status codes, encodings, names of figures), so that nobody outside can make more of
//! them.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry},
};

/// Which route gave which status.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: String,
    status: u16,
}

/// Where keys and values lie, and as what.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KvLabels {
    place: &'static str,
    encoding: String,
}

/// A figure of the service by its name.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FigureLabels {
    figure: String,
}

/// All figures.
pub struct Metrics {
    registry: Registry,
    requests: Family<RouteLabels, Counter>,
    request_seconds: Histogram,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    panics: Counter,
    connections: Gauge,
    body_bytes: Gauge,
    kv_bytes: Family<KvLabels, Gauge>,
    service: Family<FigureLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    /// Held while the page is made: what the service holds is looked up for it.
    page: Mutex<()>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("kvik");
        let all = &mut registry;
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let between_tokens = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let arrival = "Time from a request's arrival to the end of its answer";
        let first = "Time from a request's arrival to its first token";
        let cached = "Tokens of prompts whose keys and values were there already";
        let bodies = "Memory that bodies of requests take until they are prepared";
        let kv =
            "Memory of keys and values by place and encoding; what is in a file and in RAM counts in both";
        let figures = "What the service holds and has done: the figures of /v1/kv by their names";
        Self {
            requests: registered(all, "http_requests", "Requests by route and status", Family::default()),
            request_seconds: registered(all, "request_seconds", arrival, seconds()),
            first_token_seconds: registered(all, "time_to_first_token_seconds", first, seconds()),
            inter_token_seconds: registered(
                all,
                "inter_token_seconds",
                "Time between two tokens of an answer",
                between_tokens,
            ),
            prompt_tokens: registered(all, "prompt_tokens", "Tokens of prompts", Counter::default()),
            cached_tokens: registered(all, "cached_prompt_tokens", cached, Counter::default()),
            completion_tokens: registered(all, "completion_tokens", "Tokens of answers", Counter::default()),
            panics: registered(
                all,
                "panics",
                "Requests that failed by a fault of the server",
                Counter::default(),
            ),
            connections: registered(all, "connections", "Connections that are open", Gauge::default()),
            body_bytes: registered(all, "body_bytes", bodies, Gauge::default()),
            kv_bytes: registered(all, "kv_bytes", kv, Family::default()),
            service: registered(all, "service", figures, Family::default()),
            page: Mutex::default(),
            registry,
        }
    }
}

/// `metric`, which `registry` shows from here on.
fn registered<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

impl Metrics {
    /// A request was answered; `route` is the pattern that it matched.
    pub fn request(&self, route: &str, status: u16) {
        self.requests.get_or_create(&RouteLabels { route: route.to_owned(), status }).inc();
    }

    /// An answer ended.
    pub fn answer(&self, took: Duration) {
        self.request_seconds.observe(took.as_secs_f64());
    }

    /// The first token came.
    pub fn first_token(&self, after: Duration) {
        self.first_token_seconds.observe(after.as_secs_f64());
    }

    /// Another token came.
    pub fn next_token(&self, after: Duration) {
        self.inter_token_seconds.observe(after.as_secs_f64());
    }

    /// A prompt was read.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
        self.cached_tokens.inc_by(cached as u64);
    }

    /// Tokens were generated.
    pub fn completion(&self, tokens: usize) {
        self.completion_tokens.inc_by(tokens as u64);
    }

    /// A request failed by a fault of the server.
    pub fn panic(&self) {
        self.panics.inc();
    }

    /// What counts such faults, for what goes on without the application.
    pub fn panics(&self) -> Counter {
        self.panics.clone()
    }

    /// A connection was opened.
    pub fn connected(&self) {
        self.connections.inc();
    }

    /// A connection was closed.
    pub fn disconnected(&self) {
        self.connections.dec();
    }

    /// Memory that bodies of requests take right now.
    pub fn bodies(&self, bytes: usize) {
        self.body_bytes.set(bytes as i64);
    }

    /// The page: all figures, those of `status` (an object of numbers and of such objects) among them.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn page(&self, status: &serde_json::Value) -> Result<String, std::fmt::Error> {
        let _one_at_a_time = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        self.figures(&mut String::new(), status);
        self.kv_by_encoding(&status["kv"]["encodings"]);
        let mut page = String::new();
        encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// What is not there any more is not shown any more.
    fn kv_by_encoding(&self, encodings: &serde_json::Value) {
        self.kv_bytes.clear();
        for part in encodings.as_array().into_iter().flatten() {
            let encoding = part["encoding"].as_str().unwrap_or_default();
            for (place, field) in [("ram", "ram_bytes"), ("file", "file_bytes")] {
                let labels = KvLabels { place, encoding: encoding.to_owned() };
                let bytes = part[field].as_i64().unwrap_or_default();
                self.kv_bytes.get_or_create(&labels).set(bytes);
            }
        }
    }

    fn figures(&self, name: &mut String, value: &serde_json::Value) {
        match value {
            serde_json::Value::Number(number) => {
                if let Some(number) = number.as_f64() {
                    self.service.get_or_create(&FigureLabels { figure: name.clone() }).set(number);
                }
            }
            serde_json::Value::Object(fields) => {
                for (field, value) in fields {
                    let length = name.len();
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.push_str(field);
                    self.figures(name, value);
                    name.truncate(length);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_by_encoding_is_that_of_now() {
        let metrics = Metrics::default();
        let page = |encodings| metrics.page(&serde_json::json!({"kv": {"encodings": encodings}})).unwrap();
        let part = |encoding: &str, ram: u64| serde_json::json!({"encoding": encoding, "ram_bytes": ram, "file_bytes": 5});
        let both = page(serde_json::json!([part("bf16", 7), part("affine-2-bits", 3)]));
        for line in [
            "# TYPE kvik_kv_bytes gauge",
            "kvik_kv_bytes{place=\"ram\",encoding=\"bf16\"} 7",
            "kvik_kv_bytes{place=\"file\",encoding=\"affine-2-bits\"} 5",
        ] {
            assert!(both.lines().any(|one| one == line), "{line} is not in\n{both}");
        }
        let one = page(serde_json::json!([part("bf16", 8)]));
        assert!(one.contains("{place=\"ram\",encoding=\"bf16\"} 8") && !one.contains("affine"), "{one}");
    }

    #[test]
    fn the_page_has_what_was_counted() {
        let metrics = Metrics::default();
        metrics.request("/v1/models", 200);
        metrics.request("/v1/models", 200);
        metrics.prompt(100, 64);
        metrics.first_token(Duration::from_millis(3));
        let page =
            metrics.page(&serde_json::json!({"running": 2, "memory": {"ram": 7}, "model": "x"})).unwrap();
        for line in [
            "kvik_http_requests_total{route=\"/v1/models\",status=\"200\"} 2",
            "kvik_cached_prompt_tokens_total 64",
            "kvik_time_to_first_token_seconds_bucket{le=\"0.004\"} 1",
            "kvik_service{figure=\"running\"} 2.0",
            "kvik_service{figure=\"memory.ram\"} 7.0",
            "# EOF",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
