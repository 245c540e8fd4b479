//! Models from the Hugging Face hub.
//!
//! One call to the hub's API lists a repository's files with their sizes and, for the large ones, their SHA-256; the
//! files then come from the commit that was listed. Asked for a repository without a file, Kvik takes its most
//! suitable GGUF file, or else its safetensors with configuration and tokenizer, and writes down the choice, so that
//! the same name works without a network from then on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::AUTHORIZATION;
use ureq::tls::{RootCerts, TlsConfig};

use super::choice::{Listing, RemoteFile, choose};
use super::landing::{check_space, land, write_failed};
use super::progress::Progress;
use super::transfer::{ATTEMPTS, Transfer, TransferError, is_passing};
use super::{PullError, Puller, create_parent};
use crate::models::{HubModel, NAMED, closest, did_you_mean, is_inside};

/// The file that says what a name without an exact file means.
const CHOICES: &str = ".kvik.json";
/// The longest listing that is read; the largest repositories list a few megabytes.
const MAX_LISTING_BYTES: u64 = 64 << 20;
/// A line that brings nothing for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(30);

/// What the hub refused, or why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No such repository, or none that this user may see.
    #[error(
        "the hub at {endpoint} shows no repository {repository}{}; check the spelling, and set HF_TOKEN to an access \
         token if it is private",
        did_you_mean(suggestions)
    )]
    NoSuchRepository {
        /// The hub's address.
        endpoint: String,
        /// What was asked for.
        repository: String,
        /// Names that look alike, best first.
        suggestions: Vec<String>,
    },
    /// The repository asks its users to accept terms first.
    #[error(
        "{repository} asks for its terms to be accepted: open {endpoint}/{repository}, accept them, and set HF_TOKEN \
         to an access token of that account"
    )]
    Gated {
        /// The hub's address.
        endpoint: String,
        /// The repository.
        repository: String,
    },
    /// The token is wrong.
    #[error("the hub at {endpoint} refused the access token in HF_TOKEN: correct it or unset it")]
    TokenRefused {
        /// The hub's address.
        endpoint: String,
    },
    /// The repository has no such file.
    #[error("{repository} has no file {file}{}; its model files are: {}", did_you_mean(suggestions), files.join(", "))]
    NoSuchFile {
        /// The repository.
        repository: String,
        /// The file that was asked for.
        file: String,
        /// Files that look alike, best first.
        suggestions: Vec<String>,
        /// Every model file.
        files: Vec<String>,
    },
    /// The part of a file name fits several files.
    #[error("':{file}' fits several files of {repository}: {}; write one of them out", files.join(", "))]
    Ambiguous {
        /// The repository.
        repository: String,
        /// The part that was given.
        file: String,
        /// The files that it fits.
        files: Vec<String>,
    },
    /// The repository holds nothing that Kvik reads.
    #[error(
        "{repository} holds no model that Kvik reads: no single GGUF file, and no config.json with safetensors"
    )]
    NoModel {
        /// The repository.
        repository: String,
    },
    /// The hub did not answer, or the line broke too often.
    #[error(
        "cannot fetch {what} from {endpoint}: {why}; check the network (HTTPS_PROXY and HF_ENDPOINT are honoured) and \
         run the command again: what has arrived is kept"
    )]
    Unreachable {
        /// The file or listing.
        what: String,
        /// The hub's address.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// The hub answered with something else than was asked for.
    #[error("the hub at {endpoint} answered for {what} with {why}")]
    Strange {
        /// The file or listing.
        what: String,
        /// The hub's address.
        endpoint: String,
        /// What it answered.
        why: String,
    },
}

/// A hub to fetch from.
#[derive(Debug)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    pause: Duration,
    agent: Agent,
}

impl Hub {
    /// The hub that `HF_ENDPOINT` names, huggingface.co without it, with the access token in `HF_TOKEN`.
    pub fn from_env() -> Hub {
        let set = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Hub::new(&endpoint, set("HF_TOKEN"), Duration::from_millis(500))
    }

    /// The hub at `endpoint`; after a failed request it is left alone for `pause`, then twice that, and so on.
    pub fn new(endpoint: &str, token: Option<String>, pause: Duration) -> Hub {
        // The system's own certificates, so that a company's proxy is trusted where the rest of the machine does.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("kvik/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build()
            .new_agent();
        let token = token.map(|token| token.trim().to_owned());
        Hub { endpoint: endpoint.trim_end_matches('/').to_owned(), token, pause, agent }
    }

    /// GETs an answer of the API; a status other than 200 is returned as such.
    fn ask<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<Result<T, u16>, HubError> {
        let mut failures = 0;
        loop {
            let mut request = self.agent.get(format!("{}/api/{path}", self.endpoint));
            if let Some(token) = &self.token {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let why = match request.call() {
                Ok(mut response) if response.status() == 200 => {
                    let body = response.body_mut().as_reader().take(MAX_LISTING_BYTES);
                    match serde_json::from_reader(io::BufReader::new(body)) {
                        Ok(answer) => return Ok(Ok(answer)),
                        Err(error) if error.is_io() => error.to_string(),
                        Err(error) => {
                            return Err(self.strange(what, format!("something unreadable ({error})")));
                        }
                    }
                }
                Ok(response) if !is_passing(response.status().as_u16()) => {
                    return Ok(Err(response.status().as_u16()));
                }
                Ok(response) => format!("the server answered {}", response.status().as_u16()),
                Err(error) => error.to_string(),
            };
            failures += 1;
            if failures == ATTEMPTS {
                return Err(self.unreachable(what, why));
            }
            thread::sleep(self.pause * 2_u32.pow(failures - 1));
        }
    }

    fn listing(&self, model: &HubModel) -> Result<Listing, HubError> {
        let repository = format!("{}/{}", model.owner, model.name);
        let answer = self.ask(&format!("models/{repository}?blobs=true"), &repository)?;
        answer.map_err(|status| self.refusal(status, &repository))
    }

    /// What a status other than success means for a repository.
    fn refusal(&self, status: u16, repository: &str) -> HubError {
        let (endpoint, repository) = (self.endpoint.clone(), repository.to_owned());
        match status {
            // The hub answers 401 for what does not exist, too, so as not to tell which private names do.
            401 if self.token.is_some() => HubError::TokenRefused { endpoint },
            401 | 404 => {
                let suggestions = self.similar(&repository);
                HubError::NoSuchRepository { endpoint, repository, suggestions }
            }
            403 => HubError::Gated { endpoint, repository },
            status => self.strange(&repository, format!("status {status}")),
        }
    }

    /// Names like `repository`: among those Kvik knows and those that the hub's search finds, if it answers.
    fn similar(&self, repository: &str) -> Vec<String> {
        #[derive(Deserialize)]
        struct Found {
            id: String,
        }
        let name = repository.rsplit('/').next().unwrap_or(repository);
        let found: Vec<Found> = match self.ask(&format!("models?search={name}&limit=50"), "names") {
            Ok(Ok(found)) => found,
            _ => Vec::new(),
        };
        let mut names = closest(repository, found.iter().map(|found| found.id.as_str()));
        names.extend(closest(name, NAMED.iter().map(|model| model.name)));
        names.into_iter().take(3).map(str::to_owned).collect()
    }

    /// Fetches one file of a listing into the repository's folder.
    fn fetch(
        &self,
        repository: &str,
        commit: &str,
        file: &RemoteFile,
        folder: &Path,
        progress: &Progress,
    ) -> Result<(), PullError> {
        let part = part_of(folder, commit, file);
        create_parent(&part)?;
        let url = format!("{}/{repository}/resolve/{commit}/{}", self.endpoint, percent_encoded(&file.path));
        let transfer = Transfer {
            agent: &self.agent,
            url: &url,
            token: self.token.as_deref(),
            part: &part,
            bytes: file.size,
            pause: self.pause,
        };
        transfer.run(progress).map_err(|error| match error {
            TransferError::Status(404) => {
                self.strange(&file.path, "status 404, though it lists the file".into()).into()
            }
            TransferError::Status(status) => self.refusal(status, repository).into(),
            TransferError::Broken(why) => self.unreachable(&file.path, why).into(),
            TransferError::Write { missing, source } => write_failed(&part, missing, source),
        })?;
        land(&part, &folder.join(&file.path), file.lfs.as_ref().map(|large| large.sha256.as_str()))?;
        Ok(())
    }

    fn unreachable(&self, what: &str, why: String) -> HubError {
        HubError::Unreachable { what: what.to_owned(), endpoint: self.endpoint.clone(), why }
    }

    fn strange(&self, what: &str, why: String) -> HubError {
        HubError::Strange { what: what.to_owned(), endpoint: self.endpoint.clone(), why }
    }
}

/// The path of `model`, fetched if it is not in the cache.
pub(super) fn ensure(puller: &Puller, model: &HubModel) -> Result<PathBuf, PullError> {
    let folder = puller.cache.hub(&model.owner, &model.name);
    if let Some(path) = cached(&folder, model) {
        return Ok(path);
    }
    let repository = format!("{}/{}", model.owner, model.name);
    let _lock = puller.lock(&repository)?;
    if let Some(path) = cached(&folder, model) {
        return Ok(path);
    }
    let listing = puller.hub.listing(model)?;
    let choice = choose(&listing, model)?;

    let missing: Vec<_> = choice.files.iter().copied().filter(|file| !is_here(&folder, file)).collect();
    let here: u64 = missing.iter().map(|file| size_of(&part_of(&folder, &listing.sha, file))).sum();
    let total: u64 = missing.iter().map(|file| file.size).sum();
    check_space(&folder, total.saturating_sub(here))?;
    let progress = Progress::start(&format!("{repository} {}", choice.model), total);
    for file in missing {
        puller.hub.fetch(&repository, &listing.sha, file, &folder, &progress)?;
    }
    remember(&folder, model, &choice.model)?;
    Ok(if choice.model.is_empty() { folder } else { folder.join(choice.model) })
}

/// The path of `model` if its files are here.
fn cached(folder: &Path, model: &HubModel) -> Option<PathBuf> {
    let exact = model.file.as_ref().map(|file| folder.join(file)).filter(|path| path.is_file());
    exact.or_else(|| {
        let choices = read_choices(folder);
        let chosen = choices.get(model.file.as_deref().unwrap_or_default())?;
        let path = if chosen.is_empty() { folder.to_owned() } else { folder.join(chosen) };
        (is_inside(chosen) || chosen.is_empty()).then_some(path).filter(|path| path.exists())
    })
}

/// What names without an exact file were taken to mean. A damaged record is an empty one: it is written anew.
fn read_choices(folder: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder.join(CHOICES)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn remember(folder: &Path, model: &HubModel, chosen: &str) -> Result<(), PullError> {
    let asked_for = model.file.clone().unwrap_or_default();
    if asked_for == chosen && !chosen.is_empty() {
        return Ok(());
    }
    let mut choices = read_choices(folder);
    choices.insert(asked_for, chosen.to_owned());
    let (path, part) = (folder.join(CHOICES), folder.join(".kvik.json.part"));
    let text = serde_json::json!(choices).to_string();
    fs::write(&part, &text).map_err(|error| write_failed(&part, text.len() as u64, error))?;
    land(&part, &path, None)?;
    Ok(())
}

/// A path as it stands in a URL.
fn percent_encoded(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Where a file's bytes are gathered. The name changes with the content, so that two versions never mix.
fn part_of(folder: &Path, commit: &str, file: &RemoteFile) -> PathBuf {
    let version = file.lfs.as_ref().map_or(commit, |large| &large.sha256);
    let version: String = version.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    folder.join(format!("{}.{version}.part", file.path))
}

fn is_here(folder: &Path, file: &RemoteFile) -> bool {
    folder.join(&file.path).metadata().is_ok_and(|metadata| metadata.len() == file.size)
}

fn size_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}
