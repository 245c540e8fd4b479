//! Which server is put under load, how it is asked, and what it is held to: options of all that send load.

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use indicatif::ProgressBar;
use kvik_eval::{
    client::{Api, Endpoint, EngineTarget, HttpTarget},
    data::DataFolder,
    load::{Levels, LoadReport, Progress, material},
    trace::prompts::Material,
};
use serde_json::{Map, Value};

use super::numbers::above_zero;
use super::output::{check_writable, print_unless, write, write_json};
use super::service_args::Serving;

/// How a server is asked
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct AskArgs {
    /// The model to name [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// An API key
    #[arg(long, value_name = "KEY", env = "KVIK_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Ask by /v1/chat/completions instead of /v1/completions; prompts are text then
    #[arg(long)]
    chat: bool,
    /// Send prompts as text, even if the server lends its tokenizer
    #[arg(long)]
    text: bool,
    /// Send only fields of OpenAI's own API: answers then end where the model ends them
    #[arg(long)]
    plain: bool,
    /// Fields to add to each request, such as '{"kv": "kivi(bits=4)"}'
    #[arg(long, value_name = "JSON", value_parser = fields)]
    fields: Option<Map<String, Value>>,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = above_zero)]
    timeout: f64,
}

/// What a server is held to
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Levels of service")]
pub struct LevelArgs {
    /// Milliseconds to the first token
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    slo_ttft: Option<f64>,
    /// Milliseconds for each token behind it, on average over an answer
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    slo_tpot: Option<f64>,
    /// Milliseconds to the whole answer
    #[arg(long, value_name = "MS", value_parser = above_zero)]
    slo_latency: Option<f64>,
}

/// Where the numbers go
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Report")]
pub struct ReportArgs {
    /// Write all numbers as one JSON object to FILE; `-`, or no FILE, is standard output, then without the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Write a page with plots over time to FILE; `-` is standard output, then without the table
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Whoever answers, and what prompts for it are made of.
pub struct Asked<T> {
    pub target: Arc<T>,
    pub material: Material,
    pub notes: Vec<String>,
}

impl AskArgs {
    /// Finds out what the server at `endpoint` has.
    pub async fn ask(&self, endpoint: &Endpoint) -> anyhow::Result<Asked<HttpTarget>> {
        let endpoint = endpoint.clone().with_key(self.api_key.clone());
        let model = match &self.model {
            Some(model) => model.clone(),
            None => HttpTarget::first_model(&endpoint).await.context("no --model was named")?,
        };
        let target = Arc::new(HttpTarget {
            endpoint,
            api: if self.chat { Api::Chat } else { Api::Completions },
            model,
            extensions: !self.plain,
            fields: self.fields.clone().unwrap_or_default(),
            limit: self.limit(),
        });
        let (material, note) = material(&target, &text()?, !self.text).await?;
        Ok(Asked { target, material, notes: note.into_iter().collect() })
    }

    /// The model that is named.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Asks an engine in this process.
    pub fn engine(&self, serving: Serving) -> anyhow::Result<Asked<EngineTarget>> {
        let pipeline = serving.config.pipeline;
        let notes = vec![format!("{} threads, pipeline {pipeline}", serving.service.shared().threads)];
        let target = EngineTarget {
            service: Arc::new(serving.service),
            pipeline,
            whole: !self.plain,
            limit: self.limit(),
        };
        let material = target.material(&text()?).map_err(anyhow::Error::msg)?;
        Ok(Asked { target: Arc::new(target), material, notes })
    }

    fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// What prompts are taken from.
fn text() -> anyhow::Result<Cow<'static, str>> {
    Ok(DataFolder::from_env().novel(1)?)
}

impl LevelArgs {
    pub fn levels(&self) -> Levels {
        let Self { slo_ttft, slo_tpot, slo_latency } = *self;
        Levels { ttft_ms: slo_ttft, tpot_ms: slo_tpot, latency_ms: slo_latency, ..Levels::default() }
    }
}

impl ReportArgs {
    /// Complains about files that could not be written, before a long run.
    pub fn check(&self) -> anyhow::Result<()> {
        check_writable([self.json.as_deref(), self.html.as_deref()])
    }

    /// Writes what is asked for; `text` is what a terminal gets.
    pub fn write(
        &self,
        json: &impl serde::Serialize,
        html: impl Fn() -> String,
        text: &str,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.html {
            write(path, html().as_bytes())?;
        }
        if let Some(path) = &self.json {
            write_json(path, json)?;
        }
        print_unless([self.json.as_deref(), self.html.as_deref()], text)
    }
}

/// One thread for timers and sockets: the machine's others are the server's.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start timers and sockets")
}

/// What a bar for a load shows.
pub const LOAD_FIGURES: &str = "{pos} of {len}  {elapsed}  {msg}";

/// Shows `at` on `bar`.
pub fn show(bar: &ProgressBar, at: Progress) {
    bar.set_length(at.total as u64);
    bar.set_position(at.ended as u64);
    bar.set_message(format!("{} under way, {} failed", at.sent - at.ended, at.failed));
}

/// What to say when requests failed, for the exit code: a load with failures is no success.
pub fn failed(report: &LoadReport) -> Option<String> {
    let [first, ..] = &report.failures[..] else { return None };
    let said = first.messages.first().map(|message| format!(" ({message})")).unwrap_or_default();
    Some(format!(
        "{} of {} requests have no whole answer, the first of them {}{said}",
        report.failed(),
        report.requests,
        first.kind
    ))
}

fn fields(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("a JSON object is needed: {error}"))
}
