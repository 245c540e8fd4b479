//! Configuration: what options together make a server.
//!
//! [`Settings`] are the options, each given or not; [`Settings::resolve`] checks them together and gives the [`Config`] that a
//! server runs with.

mod settings;

use std::{collections::HashSet, io, net::SocketAddr, path::PathBuf, time::Duration};

use kvik_engine::ServiceOptions;
use kvik_kv::{Pipeline, pipeline::PipelineError};

pub use self::settings::{Bytes, KeySettings, LogFormat, Settings, Sharing};
use crate::{
    keys::{self, ApiKey, KeyDigest},
    limits::KeyLimits,
    pipeline::check_spill_dir,
};

/// Where a server listens if nothing else is said.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// What a server runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The model's name in the API.
    pub model_name: String,
    /// Origins whose pages may use the API in a browser.
    pub cors_origins: Vec<String>,
    /// How long running requests have to end at shutdown.
    pub grace: Duration,
    /// Pipeline of requests that name none.
    pub pipeline: Pipeline,
    /// Folder for what methods and preemptions move out of RAM.
    pub spill_dir: Option<PathBuf>,
    /// Who shares the prefixes of whom.
    pub sharing: Sharing,
    /// Answers that one request may ask for.
    pub max_choices: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Bytes of the bodies of all requests that are being read or prepared.
    pub max_bodies_bytes: usize,
    /// Requests that wait to be prepared; as many may wait to be computed.
    pub max_waiting: usize,
    /// Connections at the same time.
    pub max_connections: usize,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may leave its answer unread.
    pub unread_timeout: Duration,
    /// How long an answer may take.
    pub request_timeout: Option<Duration>,
    /// The keys.
    pub keys: Vec<ApiKey>,
    /// The limits of everybody together, where there are no keys.
    pub limits: KeyLimits,
}

/// Options that do not make a server.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration in {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        reason: String,
    },
    /// The default pipeline.
    #[error("kv: {0}")]
    Pipeline(#[from] PipelineError),
    /// An option has a value that it cannot have.
    #[error("{0}")]
    Value(String),
}

impl Settings {
    /// The configuration that these options are, for a model that is called `model_name` if they do not name it.
    ///
    /// # Errors
    /// Which option cannot be.
    pub fn resolve(&self, model_name: &str) -> Result<Config, ConfigError> {
        let limits = KeyLimits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
        };
        let keys = self.api_keys(limits)?;
        if let Some(folder) = &self.spill_dir {
            check_spill_dir(folder).map_err(ConfigError::Value)?;
        }
        let by_default = if keys.len() > 1 { Sharing::PerKey } else { Sharing::All };
        Ok(Config {
            listen: self.listen.unwrap_or(LISTEN),
            model_name: self.model_name.clone().unwrap_or_else(|| model_name.to_owned()),
            cors_origins: self.cors_origin.clone(),
            grace: Duration::from_secs(self.grace_seconds.unwrap_or(30)),
            pipeline: Pipeline::parse(self.kv.as_deref().unwrap_or_default())?,
            spill_dir: self.spill_dir.clone(),
            sharing: self.prefix_sharing.unwrap_or(by_default),
            max_choices: at_least_one("max-choices", self.max_choices, 64)?,
            max_body_bytes: bytes("max-body", self.max_body, 4 << 20)?,
            max_bodies_bytes: bytes("max-bodies", self.max_bodies, 256 << 20)?,
            max_waiting: self.max_waiting.unwrap_or_else(|| ServiceOptions::default().max_waiting),
            max_connections: at_least_one("max-connections", self.max_connections, 2048)?,
            header_timeout: seconds("header-seconds", self.header_seconds, 15)?,
            body_timeout: seconds("body-seconds", self.body_seconds, 30)?,
            unread_timeout: seconds("unread-seconds", self.unread_seconds, 60)?,
            request_timeout: self
                .request_seconds
                .map(|n| seconds("request-seconds", Some(n), n))
                .transpose()?,
            keys,
            limits,
        })
    }

    /// The keys of all three places, with names.
    fn api_keys(&self, limits: KeyLimits) -> Result<Vec<ApiKey>, ConfigError> {
        let mut keys = Vec::new();
        for key in &self.keys {
            let digest = match (&key.key, &key.sha256) {
                (Some(key), None) => KeyDigest::of(key),
                (None, Some(hex)) => KeyDigest::from_hex(hex).ok_or_else(|| {
                    value(format!("key {}: sha256 must be 64 hexadecimal digits", key.name))
                })?,
                _ => return Err(value(format!("key {}: give either key or sha256", key.name))),
            };
            if key.key.as_deref() == Some("") {
                return Err(value(format!("key {}: the key is empty", key.name)));
            }
            let limits = KeyLimits {
                requests_per_minute: key.requests_per_minute.or(limits.requests_per_minute),
                tokens_per_minute: key.tokens_per_minute.or(limits.tokens_per_minute),
                concurrent_requests: key.concurrent_requests.or(limits.concurrent_requests),
            };
            keys.push(ApiKey { name: key.name.clone(), digest, limits, priority: key.priority });
        }
        let in_file = self.api_keys_file.as_deref().map(keys::read_file).transpose().map_err(value)?;
        let given = self.api_key.iter().map(|key| (None, key.clone()));
        for (name, key) in in_file.unwrap_or_default().into_iter().chain(given) {
            if key.is_empty() {
                return Err(value("an API key is empty: leave it out or give one".to_owned()));
            }
            let name = name.unwrap_or_else(|| format!("key-{}", keys.len() + 1));
            keys.push(ApiKey { name, digest: KeyDigest::of(&key), limits, priority: 0 });
        }
        let mut names = HashSet::new();
        match keys.iter().find(|key| !names.insert(&key.name)) {
            Some(twice) => {
                Err(value(format!("two API keys are called {}: give each a name of its own", twice.name)))
            }
            None => Ok(keys),
        }
    }
}

fn value(message: String) -> ConfigError {
    ConfigError::Value(message)
}

fn at_least_one(name: &str, given: Option<usize>, default: usize) -> Result<usize, ConfigError> {
    match given.unwrap_or(default) {
        0 => Err(value(format!("{name} is 0: give a number from 1 on"))),
        number => Ok(number),
    }
}

fn bytes(name: &str, given: Option<Bytes>, default: usize) -> Result<usize, ConfigError> {
    let given = given.map(|Bytes(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX));
    at_least_one(name, given, default)
}

fn seconds(name: &str, given: Option<u64>, default: u64) -> Result<Duration, ConfigError> {
    match given.unwrap_or(default) {
        0 => Err(value(format!("{name} is 0: give a number from 1 on"))),
        // A year: more cannot be added to a point in time everywhere.
        seconds => Ok(Duration::from_secs(seconds.min(31_536_000))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn parse(arguments: &[&str]) -> Settings {
        let matches = Settings::augment_args(Command::new("serve"))
            .try_get_matches_from([&["serve"], arguments].concat())
            .unwrap();
        Settings::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "max-body = \"1MiB\"\ngrace-seconds = 5\nlisten = \"0.0.0.0:80\"\ncors-origin = [\"a\"]";
        let file: Settings = toml::from_str(file).unwrap();
        let both = parse(&["--max-body", "2KiB", "--listen", "[::1]:1"]).over(file).resolve("m").unwrap();
        assert_eq!((both.max_body_bytes, both.grace), (2048, Duration::from_secs(5)));
        assert_eq!(
            (both.listen.to_string(), both.cors_origins),
            ("[::1]:1".to_owned(), vec!["a".to_owned()])
        );
    }

    #[test]
    fn prefixes_are_per_key_where_there_are_several() {
        let sharing = |arguments: &[&str]| parse(arguments).resolve("m").unwrap().sharing;
        assert_eq!(sharing(&[]), Sharing::All);
        assert_eq!(sharing(&["--api-key", "a"]), Sharing::All);
        assert_eq!(sharing(&["--api-key", "a,b"]), Sharing::PerKey);
        assert_eq!(sharing(&["--api-key", "a,b", "--prefix-sharing", "all"]), Sharing::All);
    }

    #[test]
    fn keys_of_the_file_have_their_own_limits() {
        let text = "requests-per-minute = 9\n[[key]]\nname = \"ann\"\nkey = \"x\"\npriority = 2\n\
                    [[key]]\nname = \"bob\"\nkey = \"y\"\nrequests-per-minute = 1";
        let config = toml::from_str::<Settings>(text).unwrap().resolve("m").unwrap();
        let seen: Vec<_> = config
            .keys
            .iter()
            .map(|key| (key.name.as_str(), key.limits.requests_per_minute, key.priority))
            .collect();
        assert_eq!(seen, [("ann", Some(9), 2), ("bob", Some(1), 0)]);
        assert_eq!(config.sharing, Sharing::PerKey);
    }

    #[test]
    fn senseless_options_are_refused_with_their_name() {
        let refused =
            |text: &str| toml::from_str::<Settings>(text).unwrap().resolve("m").unwrap_err().to_string();
        assert!(refused("max-body = 0").starts_with("max-body"));
        assert!(refused("header-seconds = 0").starts_with("header-seconds"));
        assert!(refused("kv = \"snapkv(\"").starts_with("kv: "));
        assert!(refused("spill-dir = \"/no/such\"").contains("no such folder"));
        assert!(refused("[[key]]\nname = \"a\"").contains("either key or sha256"));
        let twice = "[[key]]\nname = \"a\"\nkey = \"x\"\n[[key]]\nname = \"a\"\nkey = \"y\"";
        assert!(refused(twice).contains("called a"));
        assert!(refused("api-key = [\"\"]").contains("empty"));
        assert!("12 apples".parse::<Bytes>().is_err() && "99999999TiB".parse::<Bytes>().is_err());
    }
}
