//! `kvik chat`: a conversation on the terminal.
//!
//! Each answer is generated from the whole conversation; the engine's session keeps what was computed for the turns
//! before, so only the new message costs time. When the conversation outgrows the context its oldest turns are
//! forgotten, and the user is told. A base model, which knows no turns, continues each text by itself instead.

mod editor;
mod slash;

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::bail;
use kvik::cache::Cache;
use kvik_engine::{GenerateRequest, SamplingOptions, Session, StopReason};
use kvik_model::tokenizer::EncodeOptions;

use super::conversation::{Conversation, encode_chat};
use super::engine_args::{EngineArgs, Loaded};
use super::interrupt::Interrupt;
use super::sampling_args::{COMPLETION_TOKENS, SamplingArgs};
use super::stream::{Stream, statistics};
use editor::{Editor, Input};
use slash::Slash;

/// Talk with a model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What the system message says
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik chat
  kvik chat --system \"You are a patient teacher.\" --temperature 0.3
  printf 'My name is Ada.\\nWhat is my name?\\n' | kvik chat

In the chat, /help lists the commands. NO_COLOR turns colours off.";

/// Part of the context that is kept free for an answer: one in so many tokens.
const ANSWER_SHARE: usize = 4;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let sampling = args.sampling.options()?;
    let loaded = args.engine.load()?;
    let editor = Editor::open(Cache::from_env().ok().map(|cache| cache.chat_history()))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let mut chat = Chat {
        session: loaded.session()?,
        conversation: Conversation::new(args.system.clone()),
        interrupt: Interrupt::install()?,
        colours: io::stderr().is_terminal() && io::stdout().is_terminal() && !no_color,
        statistics: None,
        attempts: 0,
        is_base: loaded.chat_template()?.is_none(),
        loaded,
        sampling,
        args,
    };
    chat.greet(&editor);
    chat.run(editor)
}

struct Chat<'a> {
    args: &'a Args,
    loaded: Loaded,
    session: Session,
    conversation: Conversation,
    sampling: SamplingOptions,
    interrupt: Interrupt,
    /// The model has no chat template.
    is_base: bool,
    colours: bool,
    /// Of the last answer.
    statistics: Option<String>,
    /// How often the last question was answered.
    attempts: u64,
}

impl Chat<'_> {
    fn greet(&self, editor: &Editor) {
        if editor.is_terminal() {
            let context = self.loaded.engine.context_tokens();
            self.note(&format!(
                "{}, {context} tokens of context; /help for help, Ctrl-D to leave",
                self.loaded.name()
            ));
        }
        if self.is_base {
            self.note(&format!(
                "{} has no chat template: it is a base model that does not answer but continues what you type.",
                self.loaded.name()
            ));
        }
    }

    fn run(&mut self, mut editor: Editor) -> anyhow::Result<()> {
        let mut interrupted = false;
        loop {
            let text = match editor.read(self.colours)? {
                Input::End => return Ok(()),
                Input::Interrupt if interrupted => return Ok(()),
                Input::Interrupt => {
                    self.note("Ctrl-C again, or Ctrl-D, leaves");
                    interrupted = true;
                    continue;
                }
                Input::Text(text) => text,
            };
            interrupted = false;
            match Slash::parse(&text) {
                Some(Ok(Slash::Exit)) => return Ok(()),
                Some(Ok(command)) => self.obey(command)?,
                Some(Err(explanation)) => self.note(&explanation),
                None if text.is_empty() => {}
                None => {
                    self.conversation.ask(&text);
                    self.attempts = 0;
                    self.answer()?;
                }
            }
        }
    }

    fn obey(&mut self, command: Slash) -> anyhow::Result<()> {
        match command {
            Slash::Help => self.note(slash::help().trim_end()),
            Slash::Clear => {
                self.conversation.clear();
                self.note("the conversation is forgotten");
            }
            Slash::System(_) if self.is_base => {
                self.note("a base model knows no system message");
            }
            Slash::System(text) => {
                self.conversation.set_system(&text);
                self.note(if text.is_empty() { "no system message" } else { "the system message is set" });
            }
            Slash::Regenerate if self.conversation.retract_answer() => self.answer()?,
            Slash::Regenerate => self.note("there is no question to answer again"),
            Slash::Save(path) => self.save(&path),
            Slash::Statistics => self.note(self.statistics.as_deref().unwrap_or("there is no answer yet")),
            Slash::Exit => {}
        }
        Ok(())
    }

    fn save(&self, path: &Path) {
        match std::fs::write(path, self.conversation.to_markdown()) {
            Ok(()) => self.note(&format!("the conversation is in {}", path.display())),
            Err(error) => self.note(&format!("cannot write {}: {error}", path.display())),
        }
    }

    /// Answers the last question. What goes wrong with it is told, and the chat goes on without it.
    fn answer(&mut self) -> anyhow::Result<()> {
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.conversation.retract_question();
                self.note(&error.to_string());
                return Ok(());
            }
        };
        // The same question with the same seed would get the same answer again.
        let seed = self.sampling.seed.map(|seed| seed.wrapping_add(self.attempts));
        self.attempts += 1;
        let request = GenerateRequest {
            prompt,
            max_tokens: self.args.sampling.max_tokens.or(self.is_base.then_some(COMPLETION_TOKENS)),
            sampling: SamplingOptions { seed, ..self.sampling.clone() },
            stop: self.args.sampling.stop.clone(),
            ..GenerateRequest::default()
        };
        let stream = Stream { print: true, interrupt: &self.interrupt };
        let generation = stream.run(&mut self.loaded.engine, &mut self.session, &request)?;
        let mut out = io::stdout().lock();
        // On a terminal an empty line sets the answer off from the next question.
        writeln!(out, "{}", if io::stdout().is_terminal() { "\n" } else { "" })?;
        out.flush()?;
        match &generation.stop {
            StopReason::Cancelled => self.note("stopped"),
            StopReason::ContextFull => {
                self.note("the context is full, so the answer ends here; /clear begins anew")
            }
            StopReason::MaxTokens if !self.is_base => self.note("cut off by --max-tokens"),
            _ => {}
        }
        self.statistics = Some(statistics(&generation));
        self.conversation.answer(generation.text);
        Ok(())
    }

    /// The tokens to continue. Forgets the oldest turns until there is room for an answer.
    fn prompt(&mut self) -> anyhow::Result<Vec<u32>> {
        let context = self.loaded.engine.context_tokens();
        let room = context - context.div_ceil(ANSWER_SHARE);
        let mut forgotten = 0;
        loop {
            let ids = self.encode()?;
            if ids.len() > room && self.conversation.forget_oldest() {
                forgotten += 1;
                continue;
            }
            self.loaded.check_fits(ids.len())?;
            if forgotten > 0 {
                let turns = if forgotten == 1 { "turn was" } else { "turns were" };
                self.note(&format!(
                    "the conversation outgrew the context: its {forgotten} oldest {turns} forgotten"
                ));
            }
            return Ok(ids);
        }
    }

    fn encode(&self) -> anyhow::Result<Vec<u32>> {
        let tokenizer = self.loaded.engine.tokenizer()?;
        if let Some(template) = self.loaded.chat_template()? {
            return encode_chat(template, tokenizer, &self.conversation);
        }
        let Some(text) = self.conversation.last_question() else { bail!("there is no text to continue") };
        Ok(tokenizer.encode(text, EncodeOptions { add_special: true, parse_special: true })?)
    }

    /// Something that Kvik says, not the model.
    fn note(&self, text: &str) {
        if self.colours { eprintln!("\x1b[2m{text}\x1b[0m") } else { eprintln!("{text}") }
    }
}
