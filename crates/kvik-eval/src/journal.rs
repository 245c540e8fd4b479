//! What was done, one JSON object a line, so that a run which was cut off goes on where it stopped.
//!
//! A line is found again by task, item, pipeline, model, where the question stood, and a fingerprint of everything that
//! the model read; so a journal never answers for a prompt that has changed. A line that was cut off in the middle of
//! writing is passed over and its item run again.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    EvalError,
    item::{Item, Job},
    run::Settings,
};

/// One item under one variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The task.
    pub task: String,
    /// The item.
    pub item: String,
    /// The pipeline.
    pub kv: String,
    /// The model.
    pub model: String,
    /// Where the first question stood.
    pub question: String,
    /// Of everything that the model read, in hexadecimal.
    pub fingerprint: String,
    /// The length asked for, in tokens.
    pub length: usize,
    /// Where the needle lay.
    pub depth: Option<f64>,
    /// How the questions hung together.
    pub mode: Option<String>,
    /// Marks, one for each question or for the text that was followed.
    pub marks: Vec<Mark>,
    /// The sum of the negative natural-log probabilities of the tokens that count.
    pub nll: f64,
    /// How many tokens count.
    pub scored_tokens: usize,
    /// Divergence from the full cache at each of them, in nats.
    pub kl: Vec<f32>,
    /// At how many of them the most likely token was the full cache's.
    pub agreed: usize,
    /// Time and memory.
    pub usage: Usage,
}

/// Marks of one question, or of all parts of a text that was followed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The kind of question.
    pub family: String,
    /// The how-manieth question of its context, from 0.
    pub turn: usize,
    /// Sum of the marks.
    pub sum: f64,
    /// How many there could be.
    pub weight: f64,
    /// The sum that random answers got; `None` where chance is no useful level.
    pub chance: Option<f64>,
    /// What the model said.
    pub text: Option<String>,
}

/// Time and memory of one item.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prefill_tokens: usize,
    /// Time for it, the method's work at its end included.
    pub prefill_seconds: f64,
    /// Tokens put behind it.
    pub append_tokens: usize,
    /// Time for them.
    pub append_seconds: f64,
    /// Tokens decoded.
    pub decode_tokens: usize,
    /// Time for them.
    pub decode_seconds: f64,
    /// Bytes of RAM of keys and values after the prompt, from the allocator.
    pub kv_bytes: usize,
    /// Bytes of files that they take.
    #[serde(default)]
    pub kv_file_bytes: usize,
    /// The most bytes of RAM at the end of an answer or text.
    pub kv_bytes_end: usize,
}

impl Outcome {
    /// An outcome with nothing in it yet, but all that it is found by.
    pub(crate) fn blank(task: &str, item: &Item, kv: &str, settings: &Settings) -> Self {
        let mode = match &item.job {
            Job::Answer { mode, .. } => Some(mode.name().to_owned()),
            Job::Force(_) => None,
        };
        Self {
            task: task.to_owned(),
            item: item.id.clone(),
            kv: kv.to_owned(),
            model: settings.model.clone(),
            question: settings.question.name().to_owned(),
            fingerprint: format!("{:016x}", item.fingerprint()),
            length: item.length,
            depth: item.depth,
            mode,
            ..Self::default()
        }
    }

    fn key(&self) -> [String; 6] {
        let key = [&self.task, &self.item, &self.kv, &self.model, &self.question, &self.fingerprint];
        key.map(Clone::clone)
    }
}

/// The outcomes of this run and of those before it.
#[derive(Default)]
pub struct Journal {
    known: HashMap<[String; 6], Outcome>,
    file: Option<(PathBuf, File)>,
    passed_over: usize,
}

impl Journal {
    /// A journal that forgets.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// The journal at `path`, made if it is not there. Lines that cannot be read are passed over.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no journal: none of its lines can be read.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let error = |action, source| EvalError::File { action, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let mut file = options.open(path).map_err(|source| error("open", source))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| error("read", source))?;
        let mut journal = Self::default();
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Outcome>(line) {
                Ok(outcome) => {
                    journal.known.insert(outcome.key(), outcome);
                }
                Err(_) => journal.passed_over += 1,
            }
        }
        if journal.known.is_empty() && journal.passed_over > 1 {
            let source = io::Error::other("it is no journal of an evaluation; give --resume another file");
            return Err(error("resume from", source));
        }
        // What follows must not join a line that was cut off.
        if bytes.last().is_some_and(|&byte| byte != b'\n') {
            file.write_all(b"\n").map_err(|source| error("write", source))?;
        }
        journal.file = Some((path.to_owned(), file));
        Ok(journal)
    }

    /// How many outcomes are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Lines that could not be read.
    pub fn passed_over(&self) -> usize {
        self.passed_over
    }

    /// What is known about the item and variant of `blank`.
    pub(crate) fn find(&self, blank: &Outcome) -> Option<&Outcome> {
        self.known.get(&blank.key())
    }

    /// Writes `outcome` down; when this returns the system has it.
    pub(crate) fn add(&mut self, outcome: &Outcome) -> Result<(), EvalError> {
        if let Some((path, file)) = &mut self.file {
            let written = serde_json::to_vec(outcome).map_err(io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
            written.map_err(|source| EvalError::File { action: "write", path: path.clone(), source })?;
        }
        self.known.insert(outcome.key(), outcome.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(item: &str) -> Outcome {
        Outcome {
            task: "t".into(),
            item: item.into(),
            kv: "full".into(),
            nll: 0.1 + 0.2,
            ..Outcome::default()
        }
    }

    #[test]
    fn outcomes_come_back_to_the_last_bit_and_a_cut_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal.add(&outcome("a")).unwrap();
        journal.add(&outcome("b")).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();

        let mut journal = Journal::open(&path).unwrap();
        assert_eq!((journal.len(), journal.passed_over()), (1, 1));
        assert_eq!(journal.find(&outcome("a")), Some(&outcome("a")));
        assert_eq!(journal.find(&outcome("b")), None);
        journal.add(&outcome("b")).unwrap();
        drop(journal);
        let journal = Journal::open(&path).unwrap();
        assert_eq!((journal.len(), journal.passed_over()), (2, 1));
        assert_eq!(journal.find(&outcome("b")), Some(&outcome("b")));
    }

    #[test]
    fn another_file_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "my notes\nare precious\n").unwrap();
        let error = Journal::open(&path).err().unwrap().to_string();
        assert!(error.contains("no journal"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes\nare precious\n");
        let error = Journal::open(&dir.path().join("no/such/folder/j")).err().unwrap().to_string();
        assert!(error.contains("cannot open"), "{error}");
    }
}
