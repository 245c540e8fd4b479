//! Parameters of methods, and the values that a pipeline gives them.

use std::fmt;

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterKind {
    /// A whole number in a range.
    Count {
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
    },
    /// A whole number in a range, or a word that stands for one.
    CountOr {
        /// The word.
        word: &'static str,
        /// Smallest.
        min: usize,
        /// Largest.
        max: usize,
    },
    /// A number in a range.
    Number {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A number of bytes: `512MiB`, `2GiB`, `100000`.
    Bytes,
    /// A path or name: anything without `,` and `)`.
    Text,
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in pipelines.
    pub name: &'static str,
    /// What it may be.
    pub kind: ParameterKind,
    /// What it is if the pipeline does not say, as a pipeline would say it.
    pub default: &'static str,
    /// What it means, units and source of the default included.
    pub about: &'static str,
}

/// The values of a method's parameters in one pipeline.
#[derive(Clone, PartialEq)]
pub struct Arguments {
    parameters: &'static [Parameter],
    /// One for each parameter; `None` for the default.
    given: Vec<Option<String>>,
}

impl Arguments {
    /// All defaults.
    pub fn defaults(parameters: &'static [Parameter]) -> Self {
        Self { parameters, given: vec![None; parameters.len()] }
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// A sentence that says what the value should be.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some(index) = self.parameters.iter().position(|parameter| parameter.name == name) else {
            let known: Vec<&str> = self.parameters.iter().map(|parameter| parameter.name).collect();
            return Err(match known.as_slice() {
                [] => format!("there is no parameter '{name}': this method has none"),
                known => format!("there is no parameter '{name}'; there are {}", known.join(", ")),
            });
        };
        if self.given[index].is_some() {
            return Err(format!("'{name}' is given twice"));
        }
        let parameter = &self.parameters[index];
        parameter.kind.check(value).map_err(|want| format!("'{name}' must be {want}, not '{value}'"))?;
        if value != parameter.default {
            self.given[index] = Some(value.to_owned());
        }
        Ok(())
    }

    /// Names and values of the parameters that differ from their defaults.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let pairs = self.parameters.iter().zip(&self.given);
        pairs.filter_map(|(parameter, value)| Some((parameter.name, value.as_deref()?)))
    }

    /// Names and values of all parameters.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let pairs = self.parameters.iter().zip(&self.given);
        pairs.map(|(parameter, value)| (parameter.name, value.as_deref().unwrap_or(parameter.default)))
    }

    /// Value of a parameter, as the pipeline or the default says it.
    ///
    /// # Panics
    /// If the method has no such parameter: the method's own mistake.
    pub fn text(&self, name: &str) -> &str {
        let found = self.all().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no parameter is called {name}")).1
    }

    /// Value of a [`ParameterKind::Count`], or of a [`ParameterKind::CountOr`] that is no word.
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn count(&self, name: &str) -> usize {
        self.text(name).parse().unwrap_or_else(|_| panic!("{name} is not a count"))
    }

    /// Value of a [`ParameterKind::Number`].
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn number(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or_else(|_| panic!("{name} is not a number"))
    }

    /// Value of a [`ParameterKind::Bytes`].
    ///
    /// # Panics
    /// If it is of another kind.
    pub fn bytes(&self, name: &str) -> u64 {
        bytes(self.text(name)).unwrap_or_else(|| panic!("{name} is not a number of bytes"))
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.all()).finish()
    }
}

impl ParameterKind {
    /// Says what a value should be if `value` is not.
    fn check(&self, value: &str) -> Result<(), String> {
        let fits = match self {
            Self::CountOr { word, .. } if value == *word => true,
            Self::Count { min, max } | Self::CountOr { min, max, .. } => {
                value.parse().is_ok_and(|count: usize| (*min..=*max).contains(&count))
            }
            Self::Number { min, max } => {
                value.parse().is_ok_and(|number: f64| (*min..=*max).contains(&number))
            }
            Self::Choice(words) => words.contains(&value),
            Self::Bytes => bytes(value).is_some(),
            Self::Text => !value.is_empty(),
        };
        if fits { Ok(()) } else { Err(self.to_string()) }
    }
}

/// As the end of "must be …".
impl fmt::Display for ParameterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count { min, max: usize::MAX } => write!(f, "a whole number from {min}"),
            Self::Count { min, max } => write!(f, "a whole number from {min} to {max}"),
            Self::CountOr { word, min, max } => write!(f, "'{word}' or a whole number from {min} to {max}"),
            Self::Number { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
            Self::Bytes => f.write_str("a number of bytes such as 512MiB"),
            Self::Text => f.write_str("a text"),
        }
    }
}

/// Reads a number of bytes: `512MiB`, `2 GiB`, `1GB`, `4096`.
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let bytes = number * unit as f64;
    (bytes.is_finite() && bytes < 9e18).then_some(bytes as u64)
}
