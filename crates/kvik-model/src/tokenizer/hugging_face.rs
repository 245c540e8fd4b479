//! Tokenizers from the files of a Hugging Face model: `tokenizer.json`, which the `tokenizers` library runs, and the
//! configuration files around it, which name the special tokens.

use std::{
    fs, io,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::OnceLock,
};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{DecoderWrapper, Tokenizer as Library, pre_tokenizers::metaspace::PrependScheme};

use super::{
    Algorithm, EncodeOptions, Spelling, Tokenizer, TokenizerError, sentence_piece,
    special_roles::{NAMED_ROLES, SpecialRoles},
    vocabulary::{TokenKind, Vocabulary},
};

/// A `tokenizer.json` at work.
pub(super) struct HuggingFace {
    /// Recognises special tokens in text.
    parsing: Library,
    /// Takes special tokens in text for text; made when first needed.
    literal: OnceLock<Library>,
}

impl HuggingFace {
    pub(super) fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        let library = if options.parse_special {
            &self.parsing
        } else {
            self.literal.get_or_init(|| {
                let mut literal = self.parsing.clone();
                literal.set_encode_special_tokens(true);
                literal
            })
        };
        let encoding = contained(|| library.encode_fast(text, options.add_special));
        Ok(encoding.map_err(TokenizerError::Encode)?.get_ids().to_vec())
    }
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face model in folder `folder`: its `tokenizer.json` and, where they exist,
    /// `tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`.
    ///
    /// # Errors
    /// A file cannot be read or is not valid.
    pub fn from_hugging_face(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join("tokenizer.json");
        let json = fs::read(&path).map_err(|source| TokenizerError::Unreadable { path, source })?;
        let configs = [
            read_config(folder, "tokenizer_config.json")?,
            read_config(folder, "special_tokens_map.json")?,
            read_config(folder, "generation_config.json")?,
        ];
        Self::from_tokenizer_json(&json, &configs)
    }

    /// The tokenizer of a `tokenizer.json`. `configs` name special tokens as the configuration files do, by text
    /// (`"eos_token"`) or number (`"eos_token_id"`); the first that names one decides, and any that names EOS ends generation.
    ///
    /// # Errors
    /// `json` is no `tokenizer.json` that the `tokenizers` library understands.
    pub fn from_tokenizer_json(json: &[u8], configs: &[Value]) -> Result<Self, TokenizerError> {
        let invalid = |reason: String| TokenizerError::Invalid { file: "tokenizer.json", reason };
        let frame: Frame = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
        check_template(&frame.post_processor).map_err(invalid)?;
        let mut library = contained(|| Library::from_bytes(json)).map_err(invalid)?;
        // Cutting texts to a length or filling them up is for training batches.
        library.with_padding(None);
        library.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        let mut vocabulary = read_vocabulary(&library, json.len()).map_err(invalid)?;
        let first = |role: &str| named_tokens(configs, role, &vocabulary).first().copied();
        let ends = named_tokens(configs, "eos", &vocabulary);
        let mut roles = SpecialRoles {
            bos: first("bos"),
            eos: first("eos"),
            unknown: first("unk"),
            padding: first("pad"),
            ..SpecialRoles::default()
        };
        roles.complete(&mut vocabulary, [None; NAMED_ROLES.len()]);
        roles.end_of_generation.extend(ends);
        roles.end_of_generation.sort_unstable();
        roles.end_of_generation.dedup();

        // What the file puts around a text shows in the tokens of an empty one.
        let around = contained(|| library.encode_fast("", true)).map_err(invalid)?;
        let around = around.get_ids();
        let decoders = library.get_decoder().map(flatten).unwrap_or_default();
        Ok(Self {
            adds_bos: roles.bos.is_some() && around.first() == roles.bos.as_ref(),
            adds_eos: roles.eos.is_some() && around.len() > 1 && around.last() == roles.eos.as_ref(),
            adds_space: decoders.iter().any(|decoder| match decoder {
                DecoderWrapper::Strip(strip) => strip.content == ' ' && strip.start > 0,
                DecoderWrapper::Metaspace(space) => space.prepend_scheme != PrependScheme::Never,
                _ => false,
            }),
            spelling: decoders.iter().find_map(spelling).unwrap_or(Spelling::Plain),
            algorithm: Algorithm::HuggingFace(Box::new(HuggingFace {
                parsing: library,
                literal: OnceLock::new(),
            })),
            vocabulary,
            roles,
        })
    }
}

/// What the library takes for granted, and panics without: that the decoder is JSON, and what
/// [`check_template`] checks.
#[derive(Deserialize)]
struct Frame {
    #[serde(default)]
    post_processor: Value,
    #[serde(default, rename = "decoder")]
    _decoder: Value,
}

/// Checks that the templates of what is put around a text have the special tokens that they name.
fn check_template(processor: &Value) -> Result<(), String> {
    for inner in processor["processors"].as_array().into_iter().flatten() {
        check_template(inner)?;
    }
    let pieces =
        ["single", "pair"].into_iter().filter_map(|template| processor[template].as_array()).flatten();
    for name in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if processor["special_tokens"].get(name).is_none() {
            return Err(format!(
                "its post-processor names the special token {name:?}, which it does not define"
            ));
        }
    }
    Ok(())
}

/// Runs the library, and makes an error of what panics it may still have.
fn contained<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it contradicts itself".to_owned()),
    }
}

/// A configuration file, or `null` if there is none.
fn read_config(folder: &Path, file: &'static str) -> Result<Value, TokenizerError> {
    let path = folder.join(file);
    match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|error| TokenizerError::Invalid { file, reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
        Err(source) => Err(TokenizerError::Unreadable { path, source }),
    }
}

/// The library's tokens in the order of their numbers. `size_bytes` is the size of the file: each token takes some of
/// it, so a number beyond it is no honest one.
fn read_vocabulary(library: &Library, size_bytes: usize) -> Result<Vocabulary, String> {
    let by_text = library.get_vocab(true);
    let added = library.get_added_tokens_decoder();
    let Some(last) = by_text.values().copied().max() else { return Err("it has no tokens".to_owned()) };
    if last as usize >= size_bytes {
        return Err(format!("it has a token with the number {last}, far more than there are tokens"));
    }
    let mut texts = vec![""; last as usize + 1];
    let mut kinds = vec![TokenKind::Undefined; texts.len()];
    for (text, &id) in &by_text {
        texts[id as usize] = text;
        kinds[id as usize] = match added.get(&id) {
            Some(token) if token.special => TokenKind::Control,
            Some(_) => TokenKind::UserDefined,
            None if sentence_piece::byte_of(text).is_some() => TokenKind::Byte,
            None => TokenKind::Normal,
        };
    }
    Vocabulary::new(&texts, kinds).ok_or_else(|| format!("it has {} tokens", texts.len()))
}

/// The tokens to which the configuration files give a role, such as `eos`: by text under `eos_token`, by number
/// under `eos_token_id`, which may be a list.
fn named_tokens(configs: &[Value], role: &str, vocabulary: &Vocabulary) -> Vec<u32> {
    let mut tokens = Vec::new();
    for config in configs {
        let by_text = &config[format!("{role}_token")];
        let text = by_text.as_str().or_else(|| by_text["content"].as_str());
        tokens.extend(text.and_then(|text| vocabulary.id(text)));
        let by_number = &config[format!("{role}_token_id")];
        let numbers = by_number.as_array().map_or(std::slice::from_ref(by_number), Vec::as_slice);
        let ids = numbers.iter().filter_map(|number| u32::try_from(number.as_u64()?).ok());
        tokens.extend(ids.filter(|&id| (id as usize) < vocabulary.len()));
    }
    tokens
}

/// A decoder's steps.
fn flatten(decoder: &DecoderWrapper) -> Vec<&DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().flat_map(flatten).collect(),
        step => vec![step],
    }
}

/// The spelling that a decoder's step undoes.
fn spelling(step: &&DecoderWrapper) -> Option<Spelling> {
    match step {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::Metaspace(_) | DecoderWrapper::Replace(_) | DecoderWrapper::ByteFallback(_) => {
            Some(Spelling::SentencePiece)
        }
        _ => None,
    }
}
