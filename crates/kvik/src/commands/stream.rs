//! A text on its way to the terminal while the model writes it.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;

use indicatif::HumanBytes;
use kvik_engine::{Engine, EngineError, Event, GenerateRequest, Generation, Session};
use kvik_memory::counters;

use super::interrupt::Interrupt;

/// Where the text goes, and what can stop it.
pub struct Stream<'a> {
    /// Write the text to standard output as it comes.
    pub print: bool,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

/// What stopped a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Whoever reads standard output.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

impl Stream<'_> {
    /// Runs `request` and writes its text as it comes, one flush a token.
    pub fn run(
        &self,
        engine: &mut Engine,
        session: &mut Session,
        request: &GenerateRequest,
    ) -> Result<Generation, StreamError> {
        let mut out = io::stdout().lock();
        let mut prefill = PrefillNote::default();
        let mut output = Ok(());
        self.interrupt.begin();
        let generation = engine.generate(session, request, &mut |event| {
            match event {
                Event::Prefill { done, total } => prefill.show(done, total),
                Event::Token { text, .. } if self.print && !text.is_empty() => {
                    prefill.clear();
                    output = out.write_all(text.as_bytes()).and_then(|()| out.flush());
                }
                Event::Token { .. } => {}
            }
            if output.is_err() || self.interrupt.pressed() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        prefill.clear();
        self.interrupt.end();
        output?;
        Ok(generation?)
    }
}

/// "reading the prompt, 37 %" on a terminal, for prompts that take several chunks.
#[derive(Default)]
struct PrefillNote {
    shown: bool,
}

impl PrefillNote {
    fn show(&mut self, done: usize, total: usize) {
        if done < total && io::stderr().is_terminal() {
            eprint!("\rreading the prompt, {} %", done * 100 / total);
            self.shown = true;
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[K");
        }
    }
}

/// One line about what a text cost.
pub fn statistics(generation: &Generation) -> String {
    let peak = counters::peak_resident_bytes().map(|bytes| format!(" · peak memory {}", HumanBytes(bytes)));
    let in_files = match generation.kv_bytes_in_files {
        0 => String::new(),
        bytes => format!(" in RAM, {} in a file", HumanBytes(bytes as u64)),
    };
    format!(
        "{} prompt tokens at {:.0}/s · {} tokens at {:.1}/s · first after {:.2} s{} · KV {}{in_files}",
        generation.prefill_tokens,
        generation.prefill_tokens_per_second(),
        generation.completion_ids.len(),
        generation.decode_tokens_per_second(),
        generation.time_to_first_token_seconds,
        peak.unwrap_or_default(),
        HumanBytes(generation.kv_bytes_in_use as u64),
    )
}
