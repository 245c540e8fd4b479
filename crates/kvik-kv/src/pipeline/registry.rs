//! What is known of methods before they run, and which of them go together.

use super::{Arguments, Parameter};
use crate::{
    KvShape, Method,
    methods::{APART, METHODS},
};

/// What a method changes. Pipelines go through these in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What each head is for.
    Heads,
    /// Which tokens stay.
    Tokens,
    /// What layers share.
    Depth,
    /// Dimensions of keys and values, and which of them are read.
    Channels,
    /// How many bits a number has.
    Bits,
    /// Where blocks lie.
    Place,
}

impl Direction {
    /// As the end of "it changes …".
    pub fn about(self) -> &'static str {
        match self {
            Self::Heads => "what each head keeps",
            Self::Tokens => "which tokens stay",
            Self::Depth => "what layers share",
            Self::Channels => "the channels of keys and values, and which tokens are read",
            Self::Bits => "the bits of each number",
            Self::Place => "where the cache lies",
        }
    }
}

/// What makes a method, or says why it does not fit the model.
pub type Build = fn(&Arguments, &KvShape) -> Result<Box<dyn Method>, String>;

/// What is known of a method before it runs.
pub struct MethodInfo {
    /// Its name in pipelines.
    pub name: &'static str,
    /// What it changes.
    pub direction: Direction,
    /// One line.
    pub summary: &'static str,
    /// Where it was published.
    pub paper: &'static str,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// True if what it keeps does not depend on the queries: the cache may then serve as a shared prefix.
    pub query_free: bool,
    /// What to calibrate first, if anything.
    pub calibration: Option<&'static str>,
    /// The method's source, whose header is its page.
    pub source: &'static str,
    /// Says what is wrong with arguments that are fine one by one but not together.
    pub check: fn(&Arguments) -> Option<String>,
    /// Makes the method for one sequence of a model, or says why it does not fit.
    pub build: Build,
}

/// What a method does not go together with although directions alone would allow it.
pub struct Apart {
    /// The method.
    pub method: &'static str,
    /// Why it does not go together with another one, if it does not.
    pub from: fn(&MethodInfo) -> Option<&'static str>,
}

impl MethodInfo {
    /// The page of the method: the header of its file.
    pub fn page(&self) -> String {
        let header = self.source.lines().map_while(|line| line.strip_prefix("//!"));
        header.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }

    /// The methods that it goes together with, before or after it.
    pub fn composes_with(&'static self) -> impl Iterator<Item = &'static MethodInfo> {
        METHODS.iter().copied().filter(move |other| {
            let (first, second) =
                if self.direction <= other.direction { (self, *other) } else { (*other, self) };
            conflict(first, second).is_none()
        })
    }
}

/// Why `later` cannot follow `earlier` in a pipeline.
pub(super) fn conflict(earlier: &MethodInfo, later: &MethodInfo) -> Option<String> {
    if earlier.name == later.name {
        return Some(format!("'{}' stands twice in the pipeline", later.name));
    }
    if earlier.direction == later.direction {
        let about = later.direction.about();
        return Some(format!("'{}' and '{}' both decide {about}; keep one", earlier.name, later.name));
    }
    for (method, other) in [(later, earlier), (earlier, later)] {
        let apart = APART.iter().filter(|apart| apart.method == method.name);
        if let Some(reason) = apart.filter_map(|apart| (apart.from)(other)).next() {
            return Some(format!("'{}' and '{}' do not go together: {reason}", method.name, other.name));
        }
    }
    (earlier.direction > later.direction).then(|| {
        format!(
            "'{later}' decides {}, so it has to come before '{earlier}', which decides {}: write {later}+{earlier}",
            later.direction.about(),
            earlier.direction.about(),
            later = later.name,
            earlier = earlier.name,
        )
    })
}

/// The method with this name.
pub fn find(name: &str) -> Option<&'static MethodInfo> {
    METHODS.iter().copied().find(|method| method.name == name)
}

/// All names, for messages.
pub fn names() -> String {
    METHODS.iter().map(|method| method.name).collect::<Vec<_>>().join(", ")
}

/// What to say of a name that no method has.
pub fn unknown(name: &str) -> String {
    let nearest = METHODS
        .iter()
        .map(|method| (strsim::damerau_levenshtein(method.name, name), method.name))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    match nearest {
        Some((_, nearest)) => format!("there is no method '{name}'; did you mean '{nearest}'?"),
        None => format!("there is no method '{name}'; there are {}", names()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_a_page_defaults_that_parse_and_its_place_in_the_alphabet() {
        for pair in METHODS.windows(2) {
            assert!(pair[0].name < pair[1].name);
        }
        for method in METHODS {
            assert!(method.page().lines().count() > 3, "{} has no header", method.name);
            let all = |arguments: &Arguments| -> String {
                arguments.all().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
            };
            let written = format!("{}({})", method.name, all(&Arguments::defaults(method.parameters)));
            let pipeline = crate::Pipeline::parse(&written).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(pipeline.to_string(), method.name);
        }
    }
}
