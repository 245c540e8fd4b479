//! A model from sums: tokens by minute and requests by day, where the log itself is not at hand.
//!
//! The published sums of BurstGPT's first file (IsabellaLiu99/burstgpt_analysis, computed from HPMLL/BurstGPT) have the
//! tokens of each minute of the first week, the requests of each hour of the day on average, and requests and tokens of each
//! of 61 days. What they show, and how it becomes a model:
//!
//! - The *rate* of an hour is its tokens over the mean tokens of a request, where minutes are known; elsewhere the day's
//!   requests, spread over the hours as they are on average.
//! - How far *requests differ* is seen in quiet hours, in which nearly every minute that is not empty holds one request: the
//!   coefficient of variation of these minutes' tokens.
//! - The *burstiness* follows from the variance of tokens between the minutes of an hour. For arrivals in bursts of shape
//!   alpha, and many to a minute, it is E\[N\] E\[X\]^2 (CV^2 + 1 / alpha): the sum of a renewal process's counts and of what
//!   requests differ.
//! - What sums cannot show is taken from elsewhere, and the model's origin says so: failures and the shares of services from
//!   the release's own description, and how tokens divide into prompt and answer from Azure's conversations of 2023.
//!   Conversations are not in it: each request stands for itself.

use serde::Deserialize;

use super::{
    ClassModel, Cloud, Comparison, Failures, GenerateOptions, Label, Lengths, Rate, Turns, Window,
    WorkloadModel, generate,
};
use crate::{
    statistics::kolmogorov_smirnov,
    trace::{Class, TraceError, facts::moments},
};

/// In Azure's conversations of 2023: the answers' share of all tokens, the coefficient of variation of their lengths, and
/// the correlation of the logarithms of prompts and answers.
const ANSWERS: (f64, f64, f64) = (0.1546, 0.77, 0.087);
/// Failures in BurstGPT's first file: 25,443 of 1,429,737.
const FAILED: f64 = 0.017_795_6;
/// The longest prompt in it.
const MOST_INPUT_TOKENS: u32 = 29_665;
/// Shares of models and of ways in, which are published one by one and taken to be independent.
const SHARES: [(&str, &str, f64); 4] = [
    ("ChatGPT", "API log", 0.847 * 0.896),
    ("ChatGPT", "Conversation log", 0.847 * 0.104),
    ("GPT-4", "API log", 0.153 * 0.896),
    ("GPT-4", "Conversation log", 0.153 * 0.104),
];
/// Minutes of an hour that may hold tokens for it to be quiet.
const QUIET: usize = 12;

/// Sums over a log.
#[derive(Clone, Debug, Deserialize)]
pub struct Aggregates {
    #[serde(rename = "week1_min")]
    minutes: Vec<Minute>,
    #[serde(rename = "hourly_avg")]
    hours: Vec<Hour>,
    #[serde(rename = "daily")]
    days: Vec<Day>,
}

#[derive(Clone, Debug, Deserialize)]
struct Minute {
    t: usize,
    tps: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Hour {
    rph: f64,
}

#[derive(Clone, Debug, Deserialize)]
struct Day {
    req: f64,
    tok: f64,
}

impl Aggregates {
    /// The sums in `text`, which `origin` holds.
    ///
    /// # Errors
    /// They are not in the form of the published ones.
    pub fn parse(text: &str, origin: &str) -> Result<Self, TraceError> {
        let refuse = |reason: String| TraceError::Model { origin: origin.to_owned(), reason };
        let sums: Self = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        if sums.hours.len() != 24
            || sums.days.is_empty()
            || sums.minutes.iter().any(|minute| minute.t >= 7 * 1440)
        {
            return Err(refuse("sums have 24 hours, a day or more, and minutes of one week".into()));
        }
        Ok(sums)
    }

    /// Days that they cover.
    pub fn days(&self) -> usize {
        self.days.len()
    }

    /// Tokens of each minute of the first week.
    pub fn minute_tokens(&self) -> Vec<f64> {
        let mut tokens = vec![0.0; 7 * 1440];
        self.minutes.iter().for_each(|minute| tokens[minute.t] = minute.tps * 60.0);
        tokens
    }

    /// The first week and its twin: tokens of each minute. The wrong side is a Poisson process at the week's mean rate.
    pub fn compare(&self, seed: u64) -> Vec<Comparison> {
        let week = self.days().min(7);
        let (model, minutes) = (self.model(week), self.minute_tokens());
        let minutes = &minutes[..week * 1440];
        let mut even = model.clone();
        for class in &mut even.classes {
            let arrivals = class.windows.iter().map(|window| window.arrivals).sum();
            class.windows = vec![Window { seconds: model.span_s, arrivals, alpha: 1.0, gaps_s: Vec::new() }];
        }
        let tokens = |model: &WorkloadModel| {
            let options = GenerateOptions {
                seed,
                start_s: 0.0,
                seconds: model.span_s,
                requests: usize::MAX,
                rate: Rate::Times(1.0),
            };
            let mut tokens = vec![0.0; minutes.len()];
            for request in generate(model, options).requests {
                let answer = if request.failed { 0 } else { request.output_tokens };
                if let Some(minute) = tokens.get_mut((request.arrival_s / 60.0) as usize) {
                    *minute += f64::from(request.input_tokens) + f64::from(answer);
                }
            }
            tokens
        };
        let (twin, poisson) = (tokens(&model), tokens(&even));
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
        let row = |twin_test| Comparison {
            what: "tokens in a minute",
            numbers: minutes.len(),
            mean: mean(minutes),
            twin_mean: mean(&twin),
            twin: twin_test,
            poisson: kolmogorov_smirnov(minutes, &poisson),
        };
        kolmogorov_smirnov(minutes, &twin).map(row).into_iter().collect()
    }

    /// The model of the first `days` days.
    pub fn model(&self, days: usize) -> WorkloadModel {
        let days = &self.days[..days.clamp(1, self.days.len())];
        let minutes = self.minute_tokens();
        let known: Vec<&[f64]> = minutes.chunks(60).take(days.len() * 24).collect();
        // Of the days whose minutes are known: tokens per request there turn tokens into requests.
        let week = &days[..days.len().min(7)];
        let per_request = |days: &[Day]| {
            let (tokens, requests) =
                days.iter().fold((0.0, 0.0), |sum, day| (sum.0 + day.tok, sum.1 + day.req));
            tokens / requests
        };
        let in_week = per_request(week);
        let variation = quiet_variation(&known);
        let alpha = shape(&known, in_week, variation);
        let by_hour: f64 = self.hours.iter().map(|hour| hour.rph).sum();
        let window = |index: usize| {
            let arrivals = match known.get(index) {
                Some(minutes) => minutes.iter().sum::<f64>() / in_week,
                None => days[index / 24].req * self.hours[index % 24].rph / by_hour,
            };
            Window {
                seconds: 3600.0,
                arrivals: (arrivals * 1000.0).round() / 1000.0,
                alpha,
                gaps_s: Vec::new(),
            }
        };
        let mean = per_request(days);
        let (share, answer_cv, correlation) = ANSWERS;
        // The sum has the variation that was seen; answers are a small part of it.
        let prompt_cv = (variation.powi(2) - (share * answer_cv).powi(2)).max(0.01).sqrt() / (1.0 - share);
        let cloud =
            Cloud::log_normal(1.0, [mean * (1.0 - share), mean * share], [prompt_cv, answer_cv], correlation);
        let label = |(model, log_type, share): (&str, &str, f64)| Label {
            class: Class::named(model, log_type),
            share,
        };
        let class = ClassModel {
            labels: SHARES.map(label).to_vec(),
            windows: (0..days.len() * 24).map(window).collect(),
            lengths: Lengths::Mixture(vec![cloud]),
            most_input_tokens: MOST_INPUT_TOKENS,
            turns: Turns::single(),
            failures: Failures::constant(FAILED),
        };
        let origin = format!(
            "sums of BurstGPT's first file over {} days, divided into prompts and answers as Azure's conversations of 2023",
            days.len()
        );
        WorkloadModel::new(origin, days.len() as f64 * 86_400.0, vec![class])
    }
}

/// The coefficient of variation of the tokens of minutes that most likely hold one request; 1 when there are too few.
fn quiet_variation(hours: &[&[f64]]) -> f64 {
    let busy = |hour: &&&[f64]| (1..=QUIET).contains(&hour.iter().filter(|&&tokens| tokens > 0.0).count());
    let lone: Vec<f64> = hours
        .iter()
        .filter(busy)
        .flat_map(|hour| hour.iter().copied())
        .filter(|&tokens| tokens > 0.0)
        .collect();
    if lone.len() < 30 {
        return 1.0;
    }
    let (mean, variance) = moments(&lone);
    variance.sqrt() / mean
}

/// The shape of the gaps, from the variance of tokens between the minutes of hours with more than a request a minute.
fn shape(hours: &[&[f64]], per_request: f64, variation: f64) -> f64 {
    let (mut variances, mut arrivals) = (0.0, 0.0);
    for (mean, variance) in hours.iter().map(|hour| moments(hour)).filter(|hour| hour.0 > per_request) {
        variances += variance;
        arrivals += mean / per_request;
    }
    let bursts = variances / (arrivals * per_request.powi(2)) - variation.powi(2);
    // Fewer bursts than Poisson's would not be seen through what requests differ.
    if bursts.is_finite() { 1.0 / bursts.clamp(0.5, 20.0) } else { 1.0 }
}
