//! Tells the program which commit it was built from, for the records of experiments.

use std::process::Command;

/// What the program is built from. Records and documents may change: they do not change the program.
const SOURCES: [&str; 3] = ["../../crates", "../../Cargo.toml", "../../Cargo.lock"];

fn main() {
    // What was changed since the commit shows as "-dirty", so any change to the sources asks again.
    for path in ["../../.git/HEAD", "../../.git/logs/HEAD"].iter().chain(&SOURCES) {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return };
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat());
    let dirty = if changed.is_none_or(|changed| changed.is_empty()) { "" } else { "-dirty" };
    println!("cargo:rustc-env=KVIK_COMMIT={commit}{dirty}");
}

/// What git says, if it is there and this is a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
