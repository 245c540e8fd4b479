//! Tells the program which commit it was built from, for the records of experiments.

use std::process::Command;

fn main() {
    // What was changed since the commit shows as "-dirty", so any change to the sources asks again.
    for path in ["../../.git/HEAD", "../../.git/logs/HEAD", "..", "../../Cargo.lock"] {
        if std::path::Path::new(path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    if let Ok(output) = git
        && output.status.success()
    {
        println!("cargo:rustc-env=KVIK_COMMIT={}", String::from_utf8_lossy(&output.stdout).trim());
    }
}
