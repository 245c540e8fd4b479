//! What whoever answers says of itself while it is under load; of a server, from its Prometheus page.
//!
//! Servers give the same things different names; those of Kvik, vLLM and llama.cpp are known. A server without such a page is
//! simply not watched.

use serde::Serialize;

/// What a server says of itself at one time; `None` for what it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the load began.
    pub at_s: f64,
    /// Requests in the batch.
    pub running: Option<f64>,
    /// Requests that wait.
    pub waiting: Option<f64>,
    /// The share of the memory for keys and values that is in use.
    pub kv_share: Option<f64>,
    /// Bytes of keys and values.
    pub kv_bytes: Option<f64>,
    /// Requests that had to give up their place, since the server began.
    pub preemptions: Option<f64>,
}

/// Names of the same thing, with or without labels; values of one name with several labels are added up.
const RUNNING: &[&str] =
    &["kvik_service{figure=\"running\"}", "vllm:num_requests_running", "llamacpp:requests_processing"];
const WAITING: &[&str] =
    &["kvik_service{figure=\"waiting\"}", "vllm:num_requests_waiting", "llamacpp:requests_deferred"];
const KV_SHARE: &[&str] =
    &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"];
const KV_BYTES: &[&str] = &["kvik_service{figure=\"kv.ram_bytes\"}"];
/// What these may become.
const KV_BUDGET: &[&str] = &["kvik_service{figure=\"kv.budget_bytes\"}"];
const PREEMPTIONS: &[&str] =
    &["kvik_service{figure=\"totals.preemptions\"}", "vllm:num_preemptions_total", "vllm:num_preemptions"];

impl Sample {
    /// From the text of a Prometheus page; `None` if it says nothing that is known.
    pub fn of_page(page: &str, at_s: f64) -> Option<Self> {
        let kv_bytes = value(page, KV_BYTES);
        let of_budget = || Some(kv_bytes? / value(page, KV_BUDGET).filter(|&budget| budget > 0.0)?);
        let sample = Self {
            at_s,
            running: value(page, RUNNING),
            waiting: value(page, WAITING),
            kv_share: value(page, KV_SHARE).or_else(of_budget),
            kv_bytes,
            preemptions: value(page, PREEMPTIONS),
        };
        (sample != Self { at_s, ..Self::default() }).then_some(sample)
    }
}

/// The sum of the values of the first of `names` that `page` has.
fn value(page: &str, names: &[&str]) -> Option<f64> {
    names.iter().find_map(|&name| {
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest = match rest.as_bytes().first()? {
                b'{' => &rest[rest.rfind('}')? + 1..],
                b' ' | b'\t' => rest,
                _ => return None, // a longer name, or other labels
            };
            rest.split_whitespace().next()?.parse::<f64>().ok()
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_known_servers_are_read() {
        let kvik = "# HELP kvik_service What the service holds.\n# TYPE kvik_service gauge\n\
                    kvik_service{figure=\"running\"} 3.0\nkvik_service{figure=\"running_max\"} 9.0\n\
                    kvik_service{figure=\"kv.ram_bytes\"} 150.0 1700000000\n\
                    kvik_service{figure=\"kv.budget_bytes\"} 600.0\nkvik_service{figure=\"totals.preemptions\"} 2.0\n# EOF\n";
        let sample = Sample::of_page(kvik, 1.0).unwrap();
        assert_eq!((sample.running, sample.waiting), (Some(3.0), None));
        assert_eq!((sample.kv_bytes, sample.kv_share), (Some(150.0), Some(0.25)));
        assert_eq!(sample.preemptions, Some(2.0));
        let engines = "vllm:num_requests_running{engine=\"0\",name=\"a } b\"} 2\nvllm:num_requests_running{engine=\"1\"} 3\n";
        assert_eq!(Sample::of_page(engines, 1.0).unwrap().running, Some(5.0));
        let vllm = "vllm:num_requests_running{model_name=\"m\"} 7.0\nvllm:num_requests_waiting{model_name=\"m\"} 1.0\n\
                    vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.25\nvllm:num_preemptions_total{model_name=\"m\"} 4.0\n";
        let expected = Sample {
            at_s: 2.0,
            running: Some(7.0),
            waiting: Some(1.0),
            kv_share: Some(0.25),
            kv_bytes: None,
            preemptions: Some(4.0),
        };
        assert_eq!(Sample::of_page(vllm, 2.0), Some(expected));
        assert_eq!(Sample::of_page("process_cpu_seconds_total 3\nbroken line\n", 0.0), None);
    }
}
