//! What a person sees while bytes arrive: a bar on a terminal, one line otherwise.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// A fetch that is under way. The bar disappears when this is dropped.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Announces `what`, of which `total` bytes will come.
    pub(super) fn start(what: &str, total: u64) -> Progress {
        if !io::stderr().is_terminal() {
            eprintln!("kvik: fetching {what} ({})", HumanBytes(total));
            return Progress { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new(total).with_message(what.to_owned());
        let template = "{msg}  {wide_bar:.cyan/dim}  {bytes} of {total_bytes}  {bytes_per_sec}  {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar }
    }

    /// How many bytes are here by now.
    pub(super) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    /// `bytes` more have arrived.
    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// `bytes` that had arrived are of no use.
    pub(super) fn retract(&self, bytes: u64) {
        self.bar.dec(bytes);
    }

    /// What is being done now.
    pub(super) fn message(&self, text: String) {
        self.bar.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
