//! One view of a model's settings, whichever file they come from.
//!
//! GGUF files hold key-value pairs (`llama.block_count`); Hugging Face models hold a `config.json`, whose nested
//! keys are joined with dots here (`rope_scaling.factor`). Both read the same way: [`Metadata::require`] for what a
//! model must say, [`Metadata::find`] for what it may say; both convert to the type that is asked for and answer a
//! mismatch with the key, the expected type and the value found.

use std::{borrow::Cow, fmt, sync::Arc};

use kvik_memory::MappedFile;
use serde_json::Map;

use crate::{
    gguf::{Dictionary, GgufArray},
    quote::Quoted,
};

/// The settings of a model.
#[derive(Debug)]
pub struct Metadata(Source);

enum Source {
    Gguf { file: Arc<MappedFile>, pairs: Dictionary },
    Config(Map<String, serde_json::Value>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf { pairs, .. } => pairs.fmt(f),
            Self::Config(config) => config.fmt(f),
        }
    }
}

/// A setting that is missing or not of the type it must have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// There is no such key.
    #[error(
        "the model does not say {key:?}; it is incomplete, or of an architecture that Kvik does not know"
    )]
    Missing {
        /// The key.
        key: String,
    },
    /// The value is of another type, or out of range.
    #[error(
        "the model's {key:?} is {found} instead of {expected}; the file is damaged or of an unknown kind"
    )]
    Mismatch {
        /// The key.
        key: String,
        /// What was asked for.
        expected: &'static str,
        /// The value found, with its type.
        found: String,
    },
}

impl Metadata {
    /// The pairs of a GGUF file. `pairs` must be the index of `file`.
    pub(crate) fn from_gguf(file: Arc<MappedFile>, pairs: Dictionary) -> Self {
        Self(Source::Gguf { file, pairs })
    }

    /// The settings of a Hugging Face `config.json`.
    pub fn from_config(config: Map<String, serde_json::Value>) -> Self {
        Self(Source::Config(config))
    }

    /// The value of `key`; `None` if there is none or it is null.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        match &self.0 {
            Source::Gguf { file, pairs } => pairs.get(file.bytes(), key),
            Source::Config(config) => lookup(config, key).filter(|value| !value.is_null()).map(Value::from),
        }
    }

    /// Whether `key` has a value.
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of `key` as a `T`, or `None` if there is none.
    ///
    /// # Errors
    /// [`MetadataError::Mismatch`] if it is no `T`.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        T::from_value(value).map(Some).ok_or_else(|| MetadataError::Mismatch {
            key: key.to_owned(),
            expected: T::EXPECTED,
            found: format!("{} {value}", value.type_name()),
        })
    }

    /// The value of `key` as a `T`.
    ///
    /// # Errors
    /// [`MetadataError::Missing`] if there is none, [`MetadataError::Mismatch`] if it is no `T`.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, MetadataError> {
        self.find(key)?.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }

    /// All keys and values, in the file's order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Cow<'_, str>, Value<'_>)> + '_> {
        match &self.0 {
            Source::Gguf { file, pairs } => {
                Box::new(pairs.iter(file.bytes()).map(|(key, value)| (Cow::Borrowed(key), value)))
            }
            Source::Config(config) => Box::new(leaves(String::new(), config)),
        }
    }
}

/// Finds `a.b.c` in nested objects, whose own keys may contain dots.
fn lookup<'a>(object: &'a Map<String, serde_json::Value>, key: &str) -> Option<&'a serde_json::Value> {
    object.get(key).or_else(|| {
        key.match_indices('.')
            .find_map(|(dot, _)| lookup(object.get(&key[..dot])?.as_object()?, &key[dot + 1..]))
    })
}

/// The values in nested objects, each with its path. Recursion is bounded: the JSON parser nests 128 deep.
fn leaves<'a>(
    prefix: String,
    object: &'a Map<String, serde_json::Value>,
) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> {
    object.iter().flat_map(move |(key, value)| -> Box<dyn Iterator<Item = _>> {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            serde_json::Value::Null => Box::new(std::iter::empty()),
            serde_json::Value::Object(object) => Box::new(leaves(path, object)),
            value => Box::new(std::iter::once((Cow::Owned(path), Value::from(value)))),
        }
    })
}

/// A setting, or an element of one that is a list. Displays as JSON does, shortened to be read by people.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// A truth value.
    Bool(bool),
    /// An integer that is stored unsigned.
    Unsigned(u64),
    /// An integer that is stored signed.
    Signed(i64),
    /// A floating-point number.
    Float(f64),
    /// A string.
    String(&'a str),
    /// A list.
    Array(Array<'a>),
    /// A JSON object, whose entries have keys of their own, or a null in a list.
    Other,
}

/// A list of values.
#[derive(Debug, Clone, Copy)]
pub enum Array<'a> {
    /// From a GGUF file: elements of one type.
    Gguf(GgufArray<'a>),
    /// From a `config.json`.
    Json(&'a [serde_json::Value]),
}

impl<'a> From<&'a serde_json::Value> for Value<'a> {
    fn from(value: &'a serde_json::Value) -> Self {
        match value {
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), ..) => Self::Unsigned(value),
                (None, Some(value), _) => Self::Signed(value),
                (None, None, Some(value)) => Self::Float(value),
                (None, None, None) => Self::Other,
            },
            serde_json::Value::String(text) => Self::String(text),
            serde_json::Value::Array(elements) => Self::Array(Array::Json(elements)),
            serde_json::Value::Null | serde_json::Value::Object(_) => Self::Other,
        }
    }
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Gguf(array) => array.len(),
            Self::Json(elements) => elements.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Value<'a>> + 'a> {
        match *self {
            Self::Gguf(array) => Box::new(array.iter()),
            Self::Json(elements) => Box::new(elements.iter().map(Value::from)),
        }
    }
}

impl Value<'_> {
    /// What kind of value this is, in words.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "the truth value",
            Self::Unsigned(_) | Self::Signed(_) => "the integer",
            Self::Float(_) => "the number",
            Self::String(_) => "the text",
            Self::Array(_) => "the list",
            Self::Other => "the object or null",
        }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_ELEMENTS: usize = 4;
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Unsigned(value) => write!(f, "{value}"),
            Self::Signed(value) => write!(f, "{value}"),
            // The shortest digits that give back the number in the width it was stored in.
            Self::Float(value) if f64::from(*value as f32) == *value => write!(f, "{:?}", *value as f32),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::String(text) => write!(f, "{}", Quoted(text)),
            Self::Array(array) => {
                write!(f, "[")?;
                for (index, element) in array.iter().take(SHOWN_ELEMENTS).enumerate() {
                    write!(f, "{}{element}", if index > 0 { ", " } else { "" })?;
                }
                match array.len() {
                    len if len > SHOWN_ELEMENTS => write!(f, ", …] of {len}"),
                    _ => write!(f, "]"),
                }
            }
            Self::Other => write!(f, "{{…}}"),
        }
    }
}

/// A type that a setting can be read as.
pub trait FromValue<'a>: Sized {
    /// The type in words, for the message that says a value is none.
    const EXPECTED: &'static str;

    /// Converts `value`: integers of any width that are in range, any number to a floating-point one.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! integer_from_value {
    ($($integer:ty: $expected:literal),*) => {$(
        impl FromValue<'_> for $integer {
            const EXPECTED: &'static str = $expected;

            fn from_value(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Unsigned(value) => value.try_into().ok(),
                    Value::Signed(value) => value.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}

integer_from_value! {
    u32: "an integer from 0 to 2^32-1",
    i32: "an integer from -2^31 to 2^31-1",
    u64: "an integer that is not negative",
    usize: "an integer that is not negative"
}

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "a number";

    fn from_value(value: Value<'_>) -> Option<Self> {
        let wide = match value {
            Value::Unsigned(value) => value as f64,
            Value::Signed(value) => value as f64,
            Value::Float(value) => value,
            _ => return None,
        };
        let narrow = wide as f32;
        (narrow.is_finite() || !wide.is_finite()).then_some(narrow)
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Bool(value) = value { Some(value) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "a text";

    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::String(text) = value { Some(text) } else { None }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const EXPECTED: &'static str = "a list";

    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::Array(array) = value { Some(array) } else { None }
    }
}

impl<'a, T: FromValue<'a>> FromValue<'a> for Vec<T> {
    const EXPECTED: &'static str = "a list of values of one type";

    fn from_value(value: Value<'a>) -> Option<Self> {
        let array = Array::from_value(value)?;
        let mut elements = Vec::with_capacity(array.len());
        for element in array.iter() {
            elements.push(T::from_value(element)?);
        }
        Some(elements)
    }
}
