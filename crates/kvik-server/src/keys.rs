//! API keys: who may use the server, and what each may take of it.
//!
//! The server keeps the SHA-256 of each key and not the key. A key that comes with a request is hashed and held against
//! all of them, each comparison over all bytes whatever they are, so that the time an answer takes says nothing about
//! how much of a guess was right. A key has a name; names appear in logs, metrics and errors, keys nowhere.

use std::{fmt, fs, path::Path, sync::Arc};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::{
    error::ApiError,
    limits::{KeyLimits, Meter},
};

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// The digest that 64 hexadecimal digits write.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

/// Not even the digest belongs in a log.
impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(…)")
    }
}

/// One key, as the configuration has it.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// What it is called.
    pub name: String,
    /// Its digest.
    pub digest: KeyDigest,
    /// What it may take.
    pub limits: KeyLimits,
    /// Its requests run before those of lower priority.
    pub priority: i32,
}

/// Who sends a request: one key, or everybody where there are none.
#[derive(Debug)]
pub struct Caller {
    /// The key's name; `None` where no key is needed.
    pub name: Option<Arc<str>>,
    /// What its requests may take.
    pub meter: Meter,
    /// The priority of its requests.
    pub priority: i32,
}

/// All keys that the server knows.
pub struct Keys {
    digests: Vec<KeyDigest>,
    callers: Vec<Arc<Caller>>,
    anonymous: Option<Arc<Caller>>,
}

impl Keys {
    /// Knows `keys`; with none of them everybody may use the server within `anonymous`.
    pub fn new(keys: Vec<ApiKey>, anonymous: KeyLimits) -> Self {
        let open = keys.is_empty();
        let digests = keys.iter().map(|key| key.digest).collect();
        let caller = |key: ApiKey| {
            let meter = Meter::new(key.limits);
            Arc::new(Caller { name: Some(key.name.into()), meter, priority: key.priority })
        };
        let callers = keys.into_iter().map(caller).collect();
        let anonymous =
            open.then(|| Arc::new(Caller { name: None, meter: Meter::new(anonymous), priority: 0 }));
        Self { digests, callers, anonymous }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.callers.len()
    }

    /// True if no key is needed.
    pub fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    /// Who sends a request with these headers.
    ///
    /// # Errors
    /// 401 if a key is needed and there is none, or not one of those that are known.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Arc<Caller>, ApiError> {
        if let Some(anonymous) = &self.anonymous {
            return Ok(Arc::clone(anonymous));
        }
        let Some(key) = bearer(headers) else {
            return Err(ApiError::unauthorized(
                "this server needs an API key: send it in the header 'Authorization: Bearer KEY'",
            ));
        };
        let unknown = || ApiError::unauthorized("the API key is not one of those that this server knows");
        self.find(KeyDigest::of(key)).and_then(|index| self.callers.get(index)).cloned().ok_or_else(unknown)
    }

    /// The index of a digest, in a time that depends on how many there are and on nothing else.
    fn find(&self, wanted: KeyDigest) -> Option<usize> {
        let (mut found, mut at) = (Choice::from(0), 0u32);
        for (index, digest) in (0u32..).zip(&self.digests) {
            let same = digest.0.ct_eq(&wanted.0);
            at.conditional_assign(&index, same);
            found |= same;
        }
        bool::from(found).then_some(at as usize)
    }
}

/// The key in a request's headers, as OpenAI's clients (`Authorization: Bearer`) or others (`x-api-key`) send it.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then_some(key.trim()).filter(|key| !key.is_empty());
    }
    headers.get("x-api-key")?.to_str().ok().filter(|key| !key.is_empty())
}

/// The names and keys in a file: a line is `NAME KEY` or `KEY`, `#` begins a comment.
///
/// # Errors
/// A sentence that names file and line.
pub fn read_file(path: &Path) -> Result<Vec<(Option<String>, String)>, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read the API keys in {}: {error}", path.display()))?;
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [] => {}
            [key] => keys.push((None, (*key).to_owned())),
            [name, key] => keys.push((Some((*name).to_owned()), (*key).to_owned())),
            _ => return Err(format!("{}, line {number}: expected NAME KEY", path.display())),
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Keys {
        let key = |key: &&str| ApiKey {
            name: format!("name of {key}"),
            digest: KeyDigest::of(key),
            limits: KeyLimits::default(),
            priority: 0,
        };
        Keys::new(keys.iter().map(key).collect(), KeyLimits::default())
    }

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            header::HeaderValue::from_static(value),
        )])
    }

    #[test]
    fn each_key_is_its_own_caller() {
        let keys = keys(&["one", "two", "three"]);
        for (header, value, name) in [
            ("authorization", "Bearer one", "name of one"),
            ("authorization", "bearer  three", "name of three"),
            ("x-api-key", "two", "name of two"),
        ] {
            assert_eq!(keys.caller(&with(header, value)).unwrap().name.as_deref(), Some(name));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let keys = keys(&["one", "two"]);
        for (header, value) in [
            ("authorization", "Bearer on"),
            ("authorization", "Bearer onee"),
            ("authorization", "Bearer "),
            ("authorization", "one"),
            ("authorization", "Basic one"),
            ("x-api-key", ""),
            ("accept", "one"),
        ] {
            let error = keys.caller(&with(header, value)).unwrap_err();
            assert_eq!(error.status, axum::http::StatusCode::UNAUTHORIZED, "{header}: {value}");
        }
    }

    #[test]
    fn without_keys_everybody_is_welcome() {
        assert!(keys(&[]).caller(&HeaderMap::new()).unwrap().name.is_none());
    }

    #[test]
    fn a_digest_in_hexadecimal_is_that_of_the_key() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyDigest::from_hex(hex), Some(KeyDigest::of("abc")));
        assert_eq!(KeyDigest::from_hex(&hex[1..]), None);
        assert_eq!(KeyDigest::from_hex(&"é".repeat(32)), None);
    }

    #[test]
    fn a_file_has_a_key_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# keys\nann sk-1\n\nsk-2 # old\n").unwrap();
        let expected = [(Some("ann".into()), "sk-1".into()), (None, "sk-2".into())];
        assert_eq!(read_file(file.path()).unwrap(), expected);
        fs::write(file.path(), "a b c").unwrap();
        assert!(read_file(file.path()).unwrap_err().contains("line 1"));
    }
}
