//! What the server says while it runs, on standard error: a line for each request and for what matters beside them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// A filter that is none.
#[derive(Debug, thiserror::Error)]
#[error("log: '{filter}' is no filter ({reason}); use error, warn, info, debug, trace or name=level")]
pub struct InvalidFilter {
    filter: String,
    reason: String,
}

/// Says what went wrong with the service and was worked around.
pub fn trouble(said: &str) {
    tracing::warn!("{said}");
}

/// Sets up logging for the rest of the process. What was set up before stays.
///
/// # Errors
/// `filter` cannot be read.
pub fn install(filter: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| InvalidFilter { filter: filter.to_owned(), reason: error.to_string() })?;
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    // Who has set up logging already, a test for example, keeps it.
    let _ = match format {
        LogFormat::Text => lines.with_target(false).with_ansi(colours).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    Ok(())
}
