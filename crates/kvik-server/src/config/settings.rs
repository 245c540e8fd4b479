//! The options of a server, as a TOML file, the environment and the command line say them, with one set of names.
//!
//! An option `max-running` is `max-running = 64` in the file, `KVIK_MAX_RUNNING=64` in the environment and
//! `--max-running 64` on the command line; the command line wins over the environment, which wins over the file. All
//! three fill the same [`Settings`]. Only the table of API keys, `[[key]]`, stands in the file alone: what is secret does not
//! belong on a command line that others can list.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};

use super::ConfigError;

/// Declares [`Settings`], so that no option can be left out where two of them are laid over each other.
macro_rules! settings {
    ($($(#[$attribute:meta])* $name:ident: $type:ty,)*) => {
        /// The options of a server, each of them given or not.
        #[derive(Clone, Debug, Default, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Settings {
            $($(#[$attribute])* pub $name: $type,)*
            /// API keys with limits of their own; in the file only.
            #[arg(skip)]
            #[serde(default, rename = "key")]
            pub keys: Vec<KeySettings>,
        }

        impl Settings {
            /// These options, and `lower` where they say nothing.
            #[must_use]
            pub fn over(self, lower: Settings) -> Settings {
                Settings {
                    $($name: Given::or(self.$name, lower.$name),)*
                    keys: Given::or(self.keys, lower.keys),
                }
            }
        }
    };
}

/// An option that may be given or not.
trait Given {
    fn or(self, lower: Self) -> Self;
}

impl<T> Given for Option<T> {
    fn or(self, lower: Self) -> Self {
        Option::or(self, lower)
    }
}

impl<T> Given for Vec<T> {
    fn or(self, lower: Self) -> Self {
        if self.is_empty() { lower } else { self }
    }
}

settings! {
    /// Address and port to listen at [default: 127.0.0.1:8080]
    #[arg(long, env = "KVIK_LISTEN", value_name = "ADDRESS", help_heading = "Server")]
    listen: Option<SocketAddr>,
    /// The model's name in the API [default: the name of its file]
    #[arg(long, env = "KVIK_MODEL_NAME", value_name = "NAME", help_heading = "Server")]
    model_name: Option<String>,
    /// Origins whose pages may use the API in a browser; * is all. May be given several times
    #[arg(long, env = "KVIK_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = "Server")]
    #[serde(default)]
    cors_origin: Vec<String>,
    /// Seconds that running requests have to end after SIGTERM or Ctrl-C [default: 30]
    #[arg(long, env = "KVIK_GRACE_SECONDS", value_name = "N", help_heading = "Server")]
    grace_seconds: Option<u64>,
    /// What is logged, for example info, debug or kvik_server=debug [default: info]
    #[arg(long, env = "KVIK_LOG", value_name = "FILTER", help_heading = "Server")]
    log: Option<String>,
    /// How it is logged [default: text]
    #[arg(long, env = "KVIK_LOG_FORMAT", value_name = "FORMAT", value_enum, help_heading = "Server")]
    log_format: Option<LogFormat>,

    /// Pipeline of requests that name none [default: full]
    #[arg(long, env = "KVIK_KV", value_name = "PIPELINE", help_heading = "Cache")]
    kv: Option<String>,
    /// RAM for the keys and values of all requests and shared prefixes [default: half of what is free]
    #[arg(long, env = "KVIK_KV_MEMORY", value_name = "BYTES", help_heading = "Cache")]
    kv_memory: Option<Bytes>,
    /// Folder that keeps prefixes across restarts [default: none are kept]
    #[arg(long, env = "KVIK_KV_DIR", value_name = "FOLDER", help_heading = "Cache")]
    kv_dir: Option<PathBuf>,
    /// Bytes that kv-dir may take [default: 4GiB]
    #[arg(long, env = "KVIK_KV_DIR_MEMORY", value_name = "BYTES", help_heading = "Cache")]
    kv_dir_memory: Option<Bytes>,
    /// Who shares the prefixes of whom [default: all; per-key where there is more than one key]
    #[arg(long, env = "KVIK_PREFIX_SHARING", value_name = "WHO", value_enum, help_heading = "Cache")]
    prefix_sharing: Option<Sharing>,
    /// Tokens of one shared block, a multiple of 64 [default: 64]
    #[arg(long, env = "KVIK_BLOCK_TOKENS", value_name = "N", help_heading = "Cache")]
    block_tokens: Option<usize>,
    /// Folder for what methods such as tier, and preemptions, move out of RAM; without it, requests cannot use them
    #[arg(long, env = "KVIK_SPILL_DIR", value_name = "FOLDER", help_heading = "Cache")]
    spill_dir: Option<PathBuf>,

    /// Requests that run at the same time [default: 64]
    #[arg(long, env = "KVIK_MAX_RUNNING", value_name = "N", help_heading = "Limits")]
    max_running: Option<usize>,
    /// Requests that wait, to be prepared or to be computed; more are answered 429 [default: 1024]
    #[arg(long, env = "KVIK_MAX_WAITING", value_name = "N", help_heading = "Limits")]
    max_waiting: Option<usize>,
    /// Tokens computed in one step, decoded and prefilled together [default: 512]
    #[arg(long, env = "KVIK_STEP_TOKENS", value_name = "N", help_heading = "Limits")]
    step_tokens: Option<usize>,
    /// Answers that one request may ask for: n times its prompts [default: 64]
    #[arg(long, env = "KVIK_MAX_CHOICES", value_name = "N", help_heading = "Limits")]
    max_choices: Option<usize>,
    /// Bytes of a request's body [default: 4MiB]
    #[arg(long, env = "KVIK_MAX_BODY", value_name = "BYTES", help_heading = "Limits")]
    max_body: Option<Bytes>,
    /// Bytes of the bodies of all requests that are being read or prepared [default: 256MiB]
    #[arg(long, env = "KVIK_MAX_BODIES", value_name = "BYTES", help_heading = "Limits")]
    max_bodies: Option<Bytes>,
    /// Connections at the same time; more wait to be accepted [default: 2048]
    #[arg(long, env = "KVIK_MAX_CONNECTIONS", value_name = "N", help_heading = "Limits")]
    max_connections: Option<usize>,
    /// Seconds that a request's head may take to arrive [default: 15]
    #[arg(long, env = "KVIK_HEADER_SECONDS", value_name = "N", help_heading = "Limits")]
    header_seconds: Option<u64>,
    /// Seconds that a request's body may take to arrive [default: 30]
    #[arg(long, env = "KVIK_BODY_SECONDS", value_name = "N", help_heading = "Limits")]
    body_seconds: Option<u64>,
    /// Seconds that a client may leave its answer unread before the connection is closed [default: 60]
    #[arg(long, env = "KVIK_UNREAD_SECONDS", value_name = "N", help_heading = "Limits")]
    unread_seconds: Option<u64>,
    /// Seconds after which an answer ends unfinished [default: no limit]
    #[arg(long, env = "KVIK_REQUEST_SECONDS", value_name = "N", help_heading = "Limits")]
    request_seconds: Option<u64>,

    /// An API key; may be given several times. Others may see a command line: prefer a file
    #[arg(long, env = "KVIK_API_KEY", value_name = "KEY", value_delimiter = ',', help_heading = "Keys")]
    #[arg(hide_env_values = true)]
    #[serde(default)]
    api_key: Vec<String>,
    /// File with API keys, NAME KEY in each line
    #[arg(long, env = "KVIK_API_KEYS_FILE", value_name = "PATH", help_heading = "Keys")]
    api_keys_file: Option<PathBuf>,
    /// Requests a minute of each key [default: no limit]
    #[arg(long, env = "KVIK_REQUESTS_PER_MINUTE", value_name = "N", help_heading = "Keys")]
    requests_per_minute: Option<u64>,
    /// Tokens a minute of each key, prompts and answers together [default: no limit]
    #[arg(long, env = "KVIK_TOKENS_PER_MINUTE", value_name = "N", help_heading = "Keys")]
    tokens_per_minute: Option<u64>,
    /// Requests of each key at the same time [default: no limit]
    #[arg(long, env = "KVIK_CONCURRENT_REQUESTS", value_name = "N", help_heading = "Keys")]
    concurrent_requests: Option<u64>,

    /// A path, a known name (see `kvik pull --list`), or owner/name[:file] from the Hugging Face hub
    #[arg(long, short, env = "KVIK_MODEL", value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,
    /// Threads to compute on [default: one for each core]
    #[arg(long, short, env = "KVIK_THREADS", value_name = "N", help_heading = "Model")]
    threads: Option<usize>,
    /// Longest sequence in tokens, prompt and answer together [default: what the model was trained for]
    #[arg(long, env = "KVIK_CTX", value_name = "TOKENS", help_heading = "Model")]
    ctx: Option<usize>,
}

/// One `[[key]]` of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeySettings {
    /// What it is called in logs and metrics.
    pub name: String,
    /// The key itself, or
    pub key: Option<String>,
    /// its SHA-256 in hexadecimal.
    pub sha256: Option<String>,
    /// Requests a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute.
    pub tokens_per_minute: Option<u64>,
    /// Requests at the same time.
    pub concurrent_requests: Option<u64>,
    /// Its requests run before those of lower priority.
    #[serde(default)]
    pub priority: i32,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Who shares the prefixes of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Nobody: each prompt is computed.
    Off,
    /// Requests of the same key share theirs.
    PerKey,
    /// All requests share; how fast an answer begins then tells what others have asked.
    All,
}

impl Sharing {
    /// As the option says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::PerKey => "per-key",
            Self::All => "all",
        }
    }
}

/// A number of bytes, as pipelines have them: `512MiB`, `2GB`, `100000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = kvik_kv::pipeline::bytes(text);
        bytes.map(Bytes).ok_or_else(|| format!("a number of bytes such as 512MiB is needed, not '{text}'"))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of bytes such as 536870912 or \"512MiB\" is needed")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Bytes(bytes)),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl Settings {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// Where the file is wrong, and how.
    pub fn read(path: &Path) -> Result<Settings, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error| {
            // Not the line itself: it may be one with a key.
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let reason = format!("line {line}: {}", without_values(error.message()));
            ConfigError::Malformed { path: path.to_owned(), reason }
        })
    }
}

/// A complaint without the strings that it quotes: one of them may be a key.
fn without_values(message: &str) -> String {
    let parts: Vec<&str> =
        message.split('"').enumerate().map(|(at, part)| if at % 2 == 1 { "…" } else { part }).collect();
    parts.join("\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command};

    fn command() -> Command {
        Settings::augment_args(Command::new("serve"))
    }

    #[test]
    fn an_option_has_one_name_everywhere() {
        let mut seen = 0;
        for argument in command().get_arguments().filter(|argument| argument.get_id() != "help") {
            let long = argument.get_long().unwrap();
            let env = argument.get_env().unwrap().to_str().unwrap();
            assert_eq!(env, format!("KVIK_{}", long.to_uppercase().replace('-', "_")));
            // Of a wrong type, so that the error says whether the name is known.
            let error = toml::from_str::<Settings>(&format!("{long} = {{}}")).unwrap_err().to_string();
            assert!(!error.contains("unknown field"), "{long}: {error}");
            seen += 1;
        }
        assert!(seen > 25, "{seen}");
        assert!(toml::from_str::<Settings>("listn = 1").unwrap_err().to_string().contains("unknown field"));
    }

    #[test]
    fn a_complaint_about_a_file_names_the_line_and_gives_no_key_away() {
        for text in [
            "listen = \"[::1]:1\"\n[[key]]\nkye = \"sk-secret\"",
            "max-body = 1\n\n\"sk-secret\"",
            "\n\napi-key = \"sk-secret\"",
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), text).unwrap();
            let said = Settings::read(file.path()).unwrap_err().to_string();
            assert!(!said.contains("secret") && said.contains("line "), "{said}");
        }
    }
}
