//! Another engine under measurement: a command that measures one figure and prints it as JSON.
//!
//! Two forms are understood, those of llama.cpp's own programs, which small scripts can imitate:
//!
//! - `llama-bench -o json`: an array of objects with `n_prompt`, `n_gen`, `n_depth` and `avg_ts` (tokens per second);
//! - `llama-batched-bench --output-format jsonl`: a line with an object for each figure, with `pp`, `tg`, `pl` and
//!   `speed_tg`. It measures the figures with several sequences.

use std::{
    io,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    str::FromStr,
};

use serde::Deserialize;

use super::figure::Figure;

/// A peer's name and its command, as `NAME=CMD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    /// A shell command in which `{model}`, `{threads}`, `{prompt}`, `{gen}`, `{depth}`, `{sequences}` and `{context}`
    /// stand for a figure's values.
    pub command: String,
}

/// Text that is no `NAME=CMD`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer is given as NAME=CMD, such as 'llama.cpp=llama-bench -m {{model}} -o json …'")]
pub struct NoPeer;

/// Why a peer gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The shell did not start.
    #[error("the shell cannot be started: {0}")]
    Shell(#[from] io::Error),
    /// The command failed.
    #[error("the command ended with {status}: {last_line}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The last line that it wrote to standard error.
        last_line: String,
    },
    /// Its output is not what was asked for.
    #[error("it printed no {expected} but {found}")]
    Output {
        /// What was expected.
        expected: &'static str,
        /// The beginning of what it printed.
        found: String,
    },
    /// It measured something else.
    #[error("it printed {found} results, none of them for this figure")]
    OtherFigure {
        /// Results in its output.
        found: usize,
    },
}

impl FromStr for Peer {
    type Err = NoPeer;

    fn from_str(text: &str) -> Result<Self, NoPeer> {
        let (name, command) = text.split_once('=').ok_or(NoPeer)?;
        let (name, command) = (name.trim(), command.trim());
        if name.is_empty() || command.is_empty() {
            return Err(NoPeer);
        }
        Ok(Self { name: name.to_owned(), command: command.to_owned() })
    }
}

impl Peer {
    /// Measures `figure` once, in tokens per second.
    ///
    /// # Errors
    /// [`PeerError`] says what the command did instead.
    pub fn measure(&self, figure: Figure, model: &Path, threads: usize) -> Result<f64, PeerError> {
        let command = self.command_for(figure, model, threads);
        let output = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last_line = errors.lines().rfind(|line| !line.trim().is_empty());
            let last_line = last_line.unwrap_or("it wrote no reason").trim().to_owned();
            return Err(PeerError::Failed { status: output.status, last_line });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        if figure.sequences() > 1 { batched_result(&text, figure) } else { result(&text, figure) }
    }

    fn command_for(&self, figure: Figure, model: &Path, threads: usize) -> String {
        let wanted = Wanted::of(figure);
        let model = format!("'{}'", model.display().to_string().replace('\'', r"'\''"));
        let context = figure.sequences() * figure.length();
        let values = [
            ("{model}", model),
            ("{threads}", threads.to_string()),
            ("{prompt}", wanted.n_prompt.to_string()),
            ("{gen}", wanted.n_gen.to_string()),
            ("{depth}", wanted.n_depth.to_string()),
            ("{sequences}", figure.sequences().to_string()),
            ("{context}", context.to_string()),
        ];
        values.iter().fold(self.command.clone(), |command, (name, value)| command.replace(name, value))
    }
}

/// A figure of one sequence, in llama-bench's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct Wanted {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
}

impl Wanted {
    fn of(figure: Figure) -> Self {
        match figure {
            Figure::Prefill { prompt } => Self { n_prompt: prompt, n_gen: 0, n_depth: 0 },
            Figure::Decode { depth, gen_tokens, .. } => {
                Self { n_prompt: 0, n_gen: gen_tokens, n_depth: depth }
            }
        }
    }
}

fn result(text: &str, figure: Figure) -> Result<f64, PeerError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(flatten)]
        figure: Wanted,
        avg_ts: f64,
    }
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|_| PeerError::Output {
        expected: "JSON array of objects with n_prompt, n_gen, n_depth and avg_ts",
        found: beginning(text),
    })?;
    let entry = entries.iter().find(|entry| entry.figure == Wanted::of(figure) && entry.avg_ts > 0.0);
    entry.map(|entry| entry.avg_ts).ok_or(PeerError::OtherFigure { found: entries.len() })
}

fn batched_result(text: &str, figure: Figure) -> Result<f64, PeerError> {
    #[derive(Deserialize)]
    struct Entry {
        pp: usize,
        tg: usize,
        pl: usize,
        speed_tg: f64,
    }
    // Other lines are the program's own talk.
    let entries: Vec<Entry> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if entries.is_empty() {
        let expected = "line with a JSON object with pp, tg, pl and speed_tg";
        return Err(PeerError::Output { expected, found: beginning(text) });
    }
    let Wanted { n_gen, n_depth, .. } = Wanted::of(figure);
    let is_wanted = |entry: &&Entry| (entry.pp, entry.tg, entry.pl) == (n_depth, n_gen, figure.sequences());
    let entry = entries.iter().find(is_wanted).filter(|entry| entry.speed_tg > 0.0);
    entry.map(|entry| entry.speed_tg).ok_or(PeerError::OtherFigure { found: entries.len() })
}

/// The beginning of what a program printed, for an error message.
fn beginning(text: &str) -> String {
    const SHOWN: usize = 80;
    let line = text.trim().lines().next().unwrap_or_default();
    let shown: String = line.chars().take(SHOWN).collect();
    if shown.is_empty() { "nothing".into() } else { format!("'{}'", shown.escape_debug()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFILL: Figure = Figure::Prefill { prompt: 512 };
    const DECODE: Figure = Figure::Decode { sequences: 1, depth: 2048, gen_tokens: 64 };
    const BATCH: Figure = Figure::Decode { sequences: 4, depth: 512, gen_tokens: 32 };

    fn measure(command: &str, figure: Figure) -> Result<f64, String> {
        let peer: Peer = format!("peer={command}").parse().unwrap();
        peer.measure(figure, Path::new("it's a model.gguf"), 2).map_err(|error| error.to_string())
    }

    #[test]
    fn a_peer_has_a_name_and_a_command() {
        let peer: Peer = "llama = bench --a=b".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.command.as_str()), ("llama", "bench --a=b"));
        for text in ["bench", "=bench", "llama=", ""] {
            assert_eq!(text.parse::<Peer>(), Err(NoPeer), "{text}");
        }
    }

    #[test]
    fn the_matching_result_is_taken() {
        let json = r#"[{"build":"x","n_prompt":512,"n_gen":0,"n_depth":0,"avg_ts":317.5},
                       {"n_prompt":0,"n_gen":64,"n_depth":2048,"avg_ts":55.25}]"#;
        assert_eq!(result(json, PREFILL).unwrap(), 317.5);
        assert_eq!(result(json, DECODE).unwrap(), 55.25);
        let other = result(json, Figure::Prefill { prompt: 128 }).unwrap_err().to_string();
        assert_eq!(other, "it printed 2 results, none of them for this figure");
        let lines = "log\n{\"pp\":512,\"tg\":32,\"pl\":2,\"speed_tg\":20.5}\n{\"pp\":512,\"tg\":32,\"pl\":4,\"speed_tg\":31.0}\n";
        assert_eq!(batched_result(lines, BATCH).unwrap(), 31.0);
        assert!(matches!(batched_result("log\n", BATCH), Err(PeerError::Output { .. })));
    }

    #[test]
    fn placeholders_reach_the_command_and_its_words_survive_the_shell() {
        let json = r#"[{"n_prompt":{prompt},"n_gen":{gen},"n_depth":{depth},"avg_ts":{threads}}]"#;
        assert_eq!(measure(&format!("echo '{json}'"), PREFILL), Ok(2.0));
        assert_eq!(
            measure(&format!("test {{model}} = \"it's a model.gguf\" && echo '{json}'"), DECODE),
            Ok(2.0)
        );
        let line = r#"{"pp":{depth},"tg":{gen},"pl":{sequences},"speed_tg":{context}}"#;
        assert_eq!(measure(&format!("echo '{line}'"), BATCH), Ok(4.0 * (512.0 + 32.0)));
    }

    #[test]
    fn a_failing_peer_says_how_it_failed() {
        let failed = measure("echo loading >&2; echo 'no such model' >&2; exit 3", PREFILL).unwrap_err();
        assert!(failed.contains("exit status: 3") && failed.ends_with(": no such model"), "{failed}");
        let empty = measure("true", PREFILL).unwrap_err();
        assert!(empty.ends_with("but nothing"), "{empty}");
        let text = measure("echo hello", BATCH).unwrap_err();
        assert!(text.ends_with("but 'hello'"), "{text}");
    }
}
