//! Results in files or on standard output, which is the file `-`.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, bail};

/// A long run must not end with a file that cannot be written, nor with two files in one stream.
pub fn check_writable<'a>(files: impl IntoIterator<Item = Option<&'a Path>>) -> anyhow::Result<()> {
    let mut on_stdout = 0;
    for path in files.into_iter().flatten() {
        on_stdout += usize::from(is_stdout(path));
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
            bail!("cannot write {}: give a file in a folder that exists", path.display());
        }
    }
    if on_stdout > 1 {
        bail!("only one result can go to standard output: give the others a file of their own");
    }
    Ok(())
}

/// Writes `bytes` to `path`.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if is_stdout(path) {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        return Ok(out.flush()?);
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes `json` to `path`: for people in a file, in one line on standard output.
pub fn write_json(path: &Path, json: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = if is_stdout(path) { serde_json::to_vec(json)? } else { serde_json::to_vec_pretty(json)? };
    text.push(b'\n');
    write(path, &text)
}

/// Prints `text` unless one of `files` is on standard output.
pub fn print_unless<'a>(files: impl IntoIterator<Item = Option<&'a Path>>, text: &str) -> anyhow::Result<()> {
    if files.into_iter().flatten().any(is_stdout) {
        return Ok(());
    }
    write(Path::new("-"), text.as_bytes())
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}
