//! BurstGPT's model of a serving workload: fitted to a log, and drawn from at any size and rate.
//!
//! Y. Wang et al., "BurstGPT: A Real-World Workload Dataset to Optimize LLM Serving Systems" (KDD 2025), found in ten
//! million requests to an Azure service that arrivals come in bursts whose strength changes within minutes, that lengths
//! have heavy tails and answers two humps, that few conversations go on for long, and that failures follow load. A
//! [`WorkloadModel`] keeps, for each service and way in, just these: `arrivals` (windows with a rate and a Gamma shape
//! each), `lengths`, `turns` and `failures`. It comes from
//!
//! - [`fit`]: a trace of any format that this crate reads;
//! - [`Aggregates`]: tokens by minute and requests by day, where the log itself is not at hand;
//! - [`WorkloadModel::official`]: the settings of the generator that the authors published.
//!
//! [`generate`] draws a trace from it, its twin. [`compare`] says how well a twin hits what it was fitted to, with two-sample
//! tests, next to an evenly mixed crowd at the same mean rate. Everything that is drawn is a function of (seed, purpose,
//! number), so a longer twin begins as a shorter one.

mod aggregates;
mod arrivals;
mod compare;
mod failures;
mod fit;
mod gamma;
mod generate;
mod lengths;
mod turns;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Class, TraceError};
use crate::zstandard::unpack;

pub use aggregates::Aggregates;
pub use arrivals::{GapLaw, Window};
pub use compare::{Comparison, compare, poisson_like};
pub use failures::{Failures, Group};
pub use fit::{FitOptions, fit};
pub use gamma::gamma;
pub use generate::{GenerateOptions, Rate, generate};
pub use lengths::{Cell, Cloud, LengthLaw, Lengths};
pub use turns::Turns;

/// The version of the form in which models are kept.
const VERSION: u32 = 1;

/// A model of a serving workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadModel {
    /// The version of this form.
    version: u32,
    /// What it was fitted to, and what was assumed.
    pub origin: String,
    /// Seconds that the windows cover; generated load repeats after them.
    pub span_s: f64,
    /// One for each service and way in.
    pub classes: Vec<ClassModel>,
}

/// The requests to one service by one way in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassModel {
    /// Which, and in which shares where the requests of several come as one stream.
    pub labels: Vec<Label>,
    /// When conversations begin.
    pub windows: Vec<Window>,
    /// Lengths of the first turns, and of answers to all.
    pub lengths: Lengths,
    /// The longest prompt; prompts of later turns grow no further.
    pub most_input_tokens: u32,
    /// How conversations go on.
    pub turns: Turns,
    /// How often nothing comes back.
    pub failures: Failures,
}

/// A service and a way in, and its share of a stream of requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Which.
    pub class: Class,
    /// Its share.
    pub share: f64,
}

impl ClassModel {
    /// Requests per second, later turns included, on average.
    pub fn rate(&self) -> f64 {
        let (arrivals, seconds) = self
            .windows
            .iter()
            .fold((0.0, 0.0), |sum, window| (sum.0 + window.arrivals, sum.1 + window.seconds));
        if seconds > 0.0 { arrivals / seconds * self.turns.mean() } else { 0.0 }
    }
}

impl WorkloadModel {
    /// A model of `classes`.
    pub fn new(origin: String, span_s: f64, classes: Vec<ClassModel>) -> Self {
        Self { version: VERSION, origin, span_s, classes }
    }

    /// BurstGPT's first file, from its published sums: 61 days, hour by hour.
    ///
    /// # Errors
    /// The copy that is compiled in is damaged, which its test would have seen.
    pub fn burstgpt() -> Result<Self, TraceError> {
        const PACKED: &[u8] = include_bytes!("../../../../../data/traces/burstgpt-model.json.zst");
        let path = "burstgpt-model.json.zst";
        let damaged = |reason: String| TraceError::Model { origin: path.to_owned(), reason };
        let text = unpack(PACKED).map_err(|error| damaged(error.to_string()))?;
        Self::parse(&String::from_utf8_lossy(&text), path)
    }

    /// The settings of the authors' generator: a shape of 0.5 and a scale of 2 s, and Zipf's law for lengths.
    pub fn official() -> Self {
        let window = Window { seconds: 60.0, arrivals: 60.0, alpha: 0.5, gaps_s: Vec::new() };
        let class = ClassModel {
            labels: vec![Label { class: Class::named("ChatGPT", "API log"), share: 1.0 }],
            windows: vec![window],
            lengths: Lengths::OFFICIAL,
            most_input_tokens: 1024,
            turns: Turns::single(),
            failures: Failures::default(),
        };
        Self::new("the settings of BurstGPT-Perf: alpha 0.5, beta 2 s, Zipf 1.1".into(), 60.0, vec![class])
    }

    /// Requests per second, on average.
    pub fn rate(&self) -> f64 {
        self.classes.iter().map(ClassModel::rate).sum()
    }

    /// The model in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read, or is not one.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let unreadable = |source| TraceError::Unreadable { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The model in `text`, which `origin` holds.
    ///
    /// # Errors
    /// It is none, or of another version, or has numbers that no load has.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TraceError> {
        let refuse = |reason: String| TraceError::Model { origin: origin.to_owned(), reason };
        let model: Self = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if model.version != VERSION {
            return Err(refuse(format!("its version is {}, not {VERSION}; fit it anew", model.version)));
        }
        let windows = model.classes.iter().flat_map(|class| &class.windows);
        let is_sound = |window: &Window| {
            let finite = [window.seconds, window.arrivals, window.alpha].iter().all(|x| x.is_finite());
            let gaps = window.gaps_s.iter().all(|gap| gap.is_finite() && *gap >= 0.0);
            finite && gaps && window.seconds > 0.0 && window.arrivals >= 0.0 && window.alpha > 0.0
        };
        if !windows.clone().all(is_sound) {
            return Err(refuse("a window has no length, a negative rate or no shape above 0".into()));
        }
        if model.classes.iter().any(|class| class.labels.is_empty() || class.turns.shares.is_empty()) {
            return Err(refuse("a stream of requests has no label or no turns".into()));
        }
        // A rate of 0 has no twin at any other rate.
        if !(model.rate() > 0.0 && model.rate().is_finite() && model.span_s > 0.0) {
            return Err(refuse("nothing ever arrives".into()));
        }
        Ok(model)
    }

    /// The model as JSON.
    ///
    /// # Errors
    /// It has a number that JSON cannot express.
    pub fn json(&self) -> Result<String, TraceError> {
        let refuse = |error: serde_json::Error| TraceError::Model {
            origin: self.origin.clone(),
            reason: error.to_string(),
        };
        serde_json::to_string(self).map_err(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_survives_its_file() {
        let model = WorkloadModel::official();
        assert_eq!(WorkloadModel::parse(&model.json().unwrap(), "x").unwrap(), model);
        assert!((model.rate() - 1.0).abs() < 1e-12 && model.classes[0].windows[0].beta() == Some(2.0));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let text = WorkloadModel::official().json().unwrap();
        for (from, to, reason) in [
            ("\"version\":1", "\"version\":9", "its version is 9"),
            ("\"alpha\":0.5", "\"alpha\":0.0", "no shape above 0"),
            ("\"arrivals\":60.0", "\"arrivals\":0.0", "nothing ever arrives"),
            ("\"windows\"", "\"doors\"", "missing field `windows`"),
        ] {
            let error = WorkloadModel::parse(&text.replacen(from, to, 1), "m.json").unwrap_err().to_string();
            assert!(error.starts_with("m.json is no model") && error.contains(reason), "{error}");
        }
    }
}
