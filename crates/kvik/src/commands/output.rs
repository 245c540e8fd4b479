//! Results in files or on standard output.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, bail};

/// A long run must not end with a file that cannot be written.
pub fn check_writable(path: &Path) -> anyhow::Result<()> {
    if is_stdout(path) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        bail!("cannot write {}: give a file in a folder that exists", path.display());
    }
    Ok(())
}

/// Writes `json` to `path`, and `text` to standard output unless the JSON went there.
pub fn write_json_or(path: Option<&Path>, json: &impl serde::Serialize, text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match path {
        Some(path) if is_stdout(path) => {
            serde_json::to_writer(&mut out, json).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        path => {
            if let Some(path) = path {
                let text = serde_json::to_vec_pretty(json)?;
                fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
            write!(out, "{text}")?;
        }
    }
    Ok(out.flush()?)
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}
