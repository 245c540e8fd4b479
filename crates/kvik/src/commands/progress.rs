//! How far a long run is, on a terminal.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with `figures` behind it, which are placeholders of indicatif such as `{pos} of {len}`. Where standard error is no
/// terminal, nothing is drawn.
pub fn progress_bar(figures: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{wide_bar:.cyan/dim}}  {figures}")) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar
}
