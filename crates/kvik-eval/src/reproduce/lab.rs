//! What experiments are made with: an engine, texts, and the verbs that most of them share.

use std::{ops::ControlFlow, time::Instant};

use kvik_engine::{Engine, Session};
use kvik_kv::{Method, Pipeline};

use crate::{
    EvalError,
    journal::Journal,
    report::{Report, Row, TaskReport},
    run::{self, QuestionPlace, Settings},
    statistics::percentile,
    subject::EngineSubject,
    tasks::{Choice, Kit, Plan},
};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// So little that it takes a minute or two: it shows that the experiment runs.
    Quick,
    /// What the verdict stands on.
    Full,
}

/// An engine under experiments.
pub struct Lab<'a> {
    engine: &'a mut Engine,
    kit: &'a Kit<'a>,
    model: String,
    scale: Scale,
    on_progress: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
}

impl<'a> Lab<'a> {
    /// A lab around `engine`, which needs room for [`SESSIONS`](crate::subject::SESSIONS) sessions. `on_progress` hears what is
    /// being done, and may break to stop.
    pub fn new(
        engine: &'a mut Engine,
        kit: &'a Kit<'a>,
        model: String,
        scale: Scale,
        on_progress: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Self {
        Self { engine, kit, model, scale, on_progress }
    }

    /// `quick` in a quick run, `full` otherwise.
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.scale == Scale::Quick { quick } else { full }
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut Engine {
        self.engine
    }

    /// Says what is being done.
    ///
    /// # Errors
    /// [`EvalError::Stopped`] if whoever listens wants to stop.
    pub fn say(&mut self, what: &str) -> Result<(), EvalError> {
        if (self.on_progress)(what).is_break() { Err(EvalError::Stopped) } else { Ok(()) }
    }

    /// Runs `task` (`name` or `name:part`) under the full cache and `pipelines`.
    ///
    /// # Errors
    /// Whatever stops the model, missing data, a pipeline that is none.
    pub fn evaluate(
        &mut self,
        task: &str,
        plan: &Plan,
        question: QuestionPlace,
        pipelines: &[String],
    ) -> Result<TaskReport, EvalError> {
        let pipelines = pipelines.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        let settings = Settings { model: self.model.clone(), question };
        let prepared = run::prepare(self.kit, &[Choice::parse(task)?], plan, self.engine.context_tokens())?;
        let mut subject = EngineSubject::new(self.engine, &pipelines)?;
        let mut journal = Journal::in_memory();
        let on_progress = &mut self.on_progress;
        let run = run::run(&mut subject, self.kit, prepared, &settings, &mut journal, &mut |at| {
            on_progress(&format!("{} {} of {}: {}", at.task, at.done, at.total, at.kv))
        })?;
        if !run.finished {
            return Err(EvalError::Stopped);
        }
        let mut report = Report::new(&run, &settings, plan.seed, Vec::new());
        report.tasks.pop().ok_or(EvalError::Stopped)
    }

    /// Tokens of the novel, from `skip` on.
    ///
    /// # Errors
    /// If the text is shorter.
    pub fn prose(&self, skip: usize, tokens: usize) -> Result<Vec<u32>, EvalError> {
        let mut ids = self.kit.prompter.text(&self.kit.data.novel(0)?)?;
        if ids.len() < skip + tokens {
            // More than the sample that is compiled in. A token of prose has four bytes on average.
            ids = self.kit.prompter.text(&self.kit.data.novel(6 * (skip + tokens))?)?;
        }
        match ids.get(skip..skip + tokens) {
            Some(ids) => Ok(ids.to_vec()),
            None => Err(EvalError::Plan(format!(
                "the novel has {} tokens, and {} are needed: point KVIK_DATA to the folder with the whole text",
                ids.len(),
                skip + tokens
            ))),
        }
    }

    /// A session that has read `prompt` under `pipeline`.
    ///
    /// # Errors
    /// Whatever stops the model.
    pub fn read(&mut self, pipeline: &str, prompt: &[u32]) -> Result<Session, EvalError> {
        let mut session = self.engine.session_with(&parse(pipeline)?)?;
        self.engine.read(&mut session, prompt, true)?;
        Ok(session)
    }

    /// A session that has read `prompt`, rewritten by `method` alone.
    ///
    /// # Errors
    /// Whatever stops the model.
    pub fn read_with(&mut self, method: Box<dyn Method>, prompt: &[u32]) -> Result<Session, EvalError> {
        let mut session = self.engine.session_watched(&Pipeline::full(), method)?;
        self.engine.read(&mut session, prompt, true)?;
        Ok(session)
    }

    /// Mean negative log-probability, in nats, of `tokens` but the first, decoded behind what `session` holds.
    ///
    /// # Errors
    /// Whatever stops the model.
    pub fn follow(&mut self, session: &mut Session, tokens: &[u32]) -> Result<f64, EvalError> {
        let mut sum = 0.0;
        self.engine.decode(session, &tokens[..tokens.len() - 1], &mut |index, logits| {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
            sum -= f64::from(logits[tokens[index + 1] as usize] - most) - all.ln();
        })?;
        Ok(sum / (tokens.len() - 1) as f64)
    }

    /// Bytes of RAM that the cache of `session` takes.
    pub fn kv_bytes(&self, session: &Session) -> f64 {
        self.engine.kv_bytes(session) as f64
    }

    /// Bytes of files that the cache of `session` takes.
    pub fn kv_file_bytes(&self, session: &Session) -> f64 {
        self.engine.kv_file_bytes(session) as f64
    }

    /// Bytes of an uncompressed bf16 cache of `tokens` tokens.
    pub fn bf16_bytes(&self, tokens: usize) -> f64 {
        self.engine.kv_shape().bf16_bytes(tokens) as f64
    }

    /// Milliseconds per decoded token behind `session`, the median of `tokens` tokens.
    ///
    /// # Errors
    /// Whatever stops the model.
    pub fn decode_ms(&mut self, session: &mut Session, tokens: usize) -> Result<f64, EvalError> {
        let mut times = Vec::with_capacity(tokens);
        for _ in 0..tokens {
            let start = Instant::now();
            self.engine.decode(session, &[1], &mut |_, _| {})?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(percentile(&times, 0.5).unwrap_or(f64::NAN))
    }
}

/// The row of `kv` in a report.
///
/// # Panics
/// If the report has none: the experiment's own mistake.
pub fn row<'r>(report: &'r TaskReport, kv: &str) -> &'r Row {
    let canonical = parse(kv).map(|pipeline| pipeline.to_string()).unwrap_or_default();
    let found = report.rows.iter().find(|row| row.kv == canonical);
    found.unwrap_or_else(|| panic!("{kv} was not evaluated"))
}

fn parse(text: &str) -> Result<Pipeline, EvalError> {
    Pipeline::parse(text)
        .map_err(|error| EvalError::Pipeline { kv: text.to_owned(), reason: error.to_string() })
}
