//! Where texts and published test sets come from.
//!
//! Small samples are compiled in, so that an evaluation runs anywhere. A larger evaluation reads the whole sets from a
//! folder that `KVIK_DATA` names; `data/README.md` says what each file is, where it comes from and under which licence.

use std::{
    borrow::Cow,
    env, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{EvalError, zstandard::unpack};

/// Where whole sets are looked for when `KVIK_DATA` does not say.
const DEFAULT_FOLDER: &str = "../shared/data";

/// A text or set: a sample that is compiled in, and the file that holds all of it.
struct Source {
    /// Path below the data folder, without the `.zst` that may follow.
    file: &'static str,
    sample: &'static str,
    /// Where the file comes from.
    hint: &'static str,
}

const WIKITEXT: Source = Source {
    file: "text/wikitext2_raw_test.txt",
    sample: include_str!("../../../data/text/wikitext2-test-head.txt"),
    hint: "WikiText-2's raw test split, word_language_model/data/wikitext-2/test.txt of pytorch/examples",
};
const NOVEL: Source = Source {
    file: "text/war_and_peace.txt",
    sample: include_str!("../../../data/text/war-and-peace-head.txt"),
    hint: "Tolstoy's War and Peace, from Project Gutenberg",
};
const LAMBADA: Source = Source {
    file: "tasks/lambada_test.jsonl",
    sample: include_str!("../../../data/tasks/lambada-sample.jsonl"),
    hint: "LAMBADA's test set, one JSON object with a field text a line",
};
const GSM8K: Source = Source {
    file: "tasks/gsm8k_test.jsonl",
    sample: include_str!("../../../data/tasks/gsm8k-sample.jsonl"),
    hint: "grade_school_math/data/test.jsonl of openai/grade-school-math",
};

/// The folder that whole sets are read from.
#[derive(Clone, Debug)]
pub struct DataFolder {
    root: PathBuf,
}

/// A passage whose last word is to be guessed.
#[derive(Clone, Debug, Deserialize)]
pub struct LambadaItem {
    /// The passage with its last word.
    pub text: String,
}

/// A word problem.
#[derive(Clone, Debug, Deserialize)]
pub struct Gsm8kItem {
    /// The problem.
    pub question: String,
    /// A worked solution; the number behind `####` is the answer.
    pub answer: String,
}

impl DataFolder {
    /// The folder that the environment variable `KVIK_DATA` names, else `../shared/data`.
    pub fn from_env() -> Self {
        let named = env::var_os("KVIK_DATA").filter(|value| !value.is_empty());
        Self::at(named.map_or_else(|| PathBuf::from(DEFAULT_FOLDER), PathBuf::from))
    }

    /// A folder of the caller's choice; it need not exist.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Encyclopedia articles of at least `bytes` bytes: WikiText-2.
    ///
    /// # Errors
    /// The sample is shorter, and the whole text is not there, is damaged or is shorter, too.
    pub fn articles(&self, bytes: usize) -> Result<Cow<'static, str>, EvalError> {
        self.text(&WIKITEXT, bytes)
    }

    /// A novel of at least `bytes` bytes: War and Peace.
    ///
    /// # Errors
    /// As [`articles`](Self::articles).
    pub fn novel(&self, bytes: usize) -> Result<Cow<'static, str>, EvalError> {
        self.text(&NOVEL, bytes)
    }

    /// LAMBADA, at least `items` of it.
    ///
    /// # Errors
    /// As [`articles`](Self::articles).
    pub fn lambada(&self, items: usize) -> Result<Vec<LambadaItem>, EvalError> {
        self.rows(&LAMBADA, items, "LAMBADA items")
    }

    /// GSM8K's test set, at least `items` of it.
    ///
    /// # Errors
    /// As [`articles`](Self::articles).
    pub fn gsm8k(&self, items: usize) -> Result<Vec<Gsm8kItem>, EvalError> {
        self.rows(&GSM8K, items, "GSM8K items")
    }

    fn text(&self, source: &Source, bytes: usize) -> Result<Cow<'static, str>, EvalError> {
        if bytes <= source.sample.len() {
            return Ok(source.sample.into());
        }
        let wanted = || format!("{bytes} bytes of text");
        let (path, text) = self.read(source, wanted, source.sample.len())?;
        if text.len() < bytes {
            return Err(EvalError::NotEnoughData { wanted: wanted(), has: text.len(), path });
        }
        Ok(text.into())
    }

    fn rows<T: DeserializeOwned>(
        &self,
        source: &Source,
        items: usize,
        what: &str,
    ) -> Result<Vec<T>, EvalError> {
        let sample = parse_rows(source.sample, Path::new(source.file))?;
        if items <= sample.len() {
            return Ok(sample);
        }
        let wanted = || format!("{items} {what}");
        let (path, text) = self.read(source, wanted, sample.len())?;
        let rows: Vec<T> = parse_rows(&text, &path)?;
        if rows.len() < items {
            return Err(EvalError::NotEnoughData { wanted: wanted(), has: rows.len(), path });
        }
        Ok(rows)
    }

    /// The whole of `source`: its file as it is, or with `.zst` behind its name and packed.
    fn read(
        &self,
        source: &Source,
        wanted: impl Fn() -> String,
        has: usize,
    ) -> Result<(PathBuf, String), EvalError> {
        let path = self.root.join(source.file);
        let packed = self.root.join(format!("{}.zst", source.file));
        let damaged = |path: &Path, reason: String| EvalError::DamagedData { path: path.to_owned(), reason };
        let (path, bytes) = if path.is_file() {
            let bytes = fs::read(&path).map_err(|error| damaged(&path, error.to_string()))?;
            (path, bytes)
        } else if packed.is_file() {
            let bytes = fs::read(&packed).map_err(|error| damaged(&packed, error.to_string()))?;
            let unpacked = unpack(&bytes).map_err(|error| damaged(&packed, error.to_string()))?;
            (packed, unpacked)
        } else {
            return Err(EvalError::MissingData {
                wanted: wanted(),
                has,
                path: packed,
                source_hint: source.hint,
            });
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged(&path, "it is not UTF-8 text".to_owned()))?;
        Ok((path, text))
    }
}

fn parse_rows<T: DeserializeOwned>(text: &str, path: &Path) -> Result<Vec<T>, EvalError> {
    let rows = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    rows.map(|(number, line)| {
        serde_json::from_str(line).map_err(|error| EvalError::DamagedData {
            path: path.to_owned(),
            reason: format!("line {}: {error}", number + 1),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_need_no_folder() {
        let nowhere = DataFolder::at("no/such/folder");
        assert!(nowhere.articles(100_000).unwrap().contains("Robert Boulter"));
        assert!(nowhere.novel(50_000).unwrap().starts_with("\"Well, Prince"));
        let lambada = nowhere.lambada(200).unwrap();
        assert!(lambada.iter().all(|item| item.text.split_whitespace().count() > 20));
        let gsm8k = nowhere.gsm8k(100).unwrap();
        assert!(gsm8k.iter().all(|item| item.answer.contains("#### ")));
    }

    #[test]
    fn what_is_missing_is_named_with_its_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::at(dir.path());
        let error = folder.lambada(300).unwrap_err().to_string();
        for part in ["300 LAMBADA items", "has 258", "lambada_test.jsonl.zst", "KVIK_DATA"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        fs::create_dir(dir.path().join("tasks")).unwrap();
        let file = dir.path().join("tasks/lambada_test.jsonl");
        fs::write(&file, "{\"text\": \"a b\"}\n\n{\"text\": 3}\n").unwrap();
        let error = folder.lambada(300).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        fs::write(&file, "{\"text\": \"a b\"}\n").unwrap();
        let error = folder.lambada(300).unwrap_err().to_string();
        assert!(error.contains("has 1: ask for less"), "{error}");
        fs::write(dir.path().join("tasks/gsm8k_test.jsonl.zst"), b"not zstd").unwrap();
        assert!(matches!(folder.gsm8k(1000), Err(EvalError::DamagedData { .. })));
    }
}
