//! The browser that pages are opened in.

use std::process::{Command, Stdio};

/// The name of Chromium's program; `None` where there is none and none is asked for.
pub fn chromium() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    });
    if found.is_none() {
        let required = std::env::var("KVIK_BROWSER").is_ok_and(|value| value == "required");
        assert!(!required, "KVIK_BROWSER=required, and there is no chromium");
        eprintln!("passed over: there is no chromium");
    }
    found
}
