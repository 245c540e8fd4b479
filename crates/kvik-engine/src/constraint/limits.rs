//! What is refused before any work is done for it.
//!
//! The library bounds the size of what it compiles and of each step, but some of what a schema asks for is done before
//! those bounds are looked at: descending, following references, multiplying out combinations. So a schema is measured
//! first, in time proportional to its size.

use super::error::ConstraintError;
use serde_json::{Map, Number, Value};
use std::collections::HashMap;

/// A schema of more bytes is refused; the largest in common use, of build files and medical records, have more and are
/// meant for editors.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// A grammar of more bytes is refused.
const MAX_GRAMMAR_BYTES: usize = 512 << 10;
/// A grammar with more parentheses open is refused.
const MAX_GRAMMAR_DEPTH: usize = 200;
/// What a schema follows in a grammar.
const SCHEMA_IN_GRAMMAR: &str = "%json";
/// A regular expression of more bytes is refused.
const MAX_REGEX_BYTES: usize = 8 << 10;
/// Choices of more bytes, all together, are refused.
const MAX_CHOICES_BYTES: usize = 64 << 10;
/// More choices are refused.
const MAX_CHOICES: usize = 4096;
/// A schema nested deeper is refused.
const MAX_DEPTH: usize = 64;
/// A schema whose combinations unfold to more parts is refused.
const MAX_PARTS: u64 = 100_000;
/// And one that is deeper when references are followed.
const MAX_UNFOLDED_DEPTH: usize = 400;
/// An object with more properties that may be left out is refused: each of them may come next.
const MAX_OPTIONAL_PROPERTIES: usize = 400;
/// What `multipleOf` may be, without its power of ten: the remainders are the states of an automaton.
const MAX_MULTIPLE: f64 = 2000.0;
/// And all of them multiplied, where schemas are merged: their multiples are common ones then.
const MAX_COMMON_MULTIPLE: f64 = 10_000.0;

/// Keywords whose value is one schema.
const ONE_SCHEMA: [&str; 13] = [
    "items",
    "additionalItems",
    "contains",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
    "prefixItems",
];
/// Keywords whose value is a map of schemas.
const MAP_OF_SCHEMAS: [&str; 3] = ["properties", "patternProperties", "dependentSchemas"];

/// Checks that a text is no longer than `limit`.
fn check_length(what: &'static str, size: usize, limit: usize) -> Result<(), ConstraintError> {
    if size > limit { Err(ConstraintError::TooLong { what, size, limit }) } else { Ok(()) }
}

/// Checks the length of a grammar, its nesting, and the schemas in it.
pub(super) fn check_grammar(grammar: &str) -> Result<(), ConstraintError> {
    check_length("grammar", grammar.len(), MAX_GRAMMAR_BYTES)?;
    let mut depth = 0usize;
    for byte in grammar.bytes() {
        // Those inside of strings count as well: nobody writes so many that do not close.
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_GRAMMAR_DEPTH {
            return Err(ConstraintError::TooDeep { what: "grammar", limit: MAX_GRAMMAR_DEPTH });
        }
    }
    for (at, mark) in grammar.match_indices(SCHEMA_IN_GRAMMAR) {
        // Where no JSON follows, the grammar is broken, or this is in a string.
        let mut schemas = serde_json::Deserializer::from_str(&grammar[at + mark.len()..]).into_iter();
        if let Some(Ok(schema)) = schemas.next() {
            check_schema(&schema)?;
        }
    }
    Ok(())
}

/// Checks the length of a regular expression.
pub(super) fn check_regex(regex: &str) -> Result<(), ConstraintError> {
    check_length("regular expression", regex.len(), MAX_REGEX_BYTES)
}

/// Checks number and length of choices.
pub(super) fn check_choices(choices: &[String]) -> Result<(), ConstraintError> {
    match choices.len() {
        0 => return Err(ConstraintError::NoChoice),
        count if count > MAX_CHOICES => {
            return Err(ConstraintError::TooManyChoices { count, limit: MAX_CHOICES });
        }
        _ => {}
    }
    check_length("list of choices", choices.iter().map(String::len).sum(), MAX_CHOICES_BYTES)
}

/// Checks depth, size, references and combinations of a schema.
pub(crate) fn check_schema(schema: &Value) -> Result<(), ConstraintError> {
    // Depth first: what follows descends.
    check_depth(schema)?;
    check_length("JSON schema", json_bytes(schema), MAX_SCHEMA_BYTES)?;
    check_references(schema)?;
    let mut multiples = Multiples::default();
    multiples.look_at(schema)?;
    multiples.check()?;
    let parts = Unfolding { root: schema, targets: HashMap::new(), depth: 0 }.schema(schema).parts;
    if parts > MAX_PARTS { Err(ConstraintError::TooManyCombinations { limit: MAX_PARTS }) } else { Ok(()) }
}

/// Checks the nesting, without recursion.
fn check_depth(schema: &Value) -> Result<(), ConstraintError> {
    let mut open = vec![(schema, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > MAX_DEPTH {
            return Err(ConstraintError::TooDeep { what: "JSON schema", limit: MAX_DEPTH });
        }
        match value {
            Value::Array(items) => open.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(fields) => open.extend(fields.values().map(|field| (field, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// The length of the value as compact JSON, up to escapes.
fn json_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) => number.to_string().len(),
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| json_bytes(item) + 1).sum::<usize>() + 2,
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| name.len() + json_bytes(field) + 4).sum::<usize>() + 2
        }
    }
}

/// Checks that every reference stays inside: nothing is fetched on behalf of a schema.
fn check_references(value: &Value) -> Result<(), ConstraintError> {
    match value {
        Value::Array(items) => items.iter().try_for_each(check_references),
        Value::Object(fields) => {
            for keyword in ["$ref", "$dynamicRef", "$recursiveRef"] {
                // A property may have such a name; its value is a schema and no string then.
                if let Some(Value::String(target)) = fields.get(keyword)
                    && !target.starts_with('#')
                {
                    return Err(ConstraintError::OutsideReference(target.clone()));
                }
            }
            fields.values().try_for_each(check_references)
        }
        _ => Ok(()),
    }
}

/// What can be multiplied in a schema, and how many optional properties an object of it has.
#[derive(Default)]
struct Multiples {
    merges: bool,
    product: f64,
}

impl Multiples {
    fn look_at(&mut self, value: &Value) -> Result<(), ConstraintError> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.look_at(item)),
            Value::Object(fields) => {
                self.merges |=
                    fields.contains_key("allOf") || (fields.contains_key("$ref") && fields.len() > 1);
                if let Some(Value::Number(step)) = fields.get("multipleOf") {
                    self.multiple(step)?;
                }
                let optional = fields.get("properties").and_then(Value::as_object).map_or(0, |properties| {
                    let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
                    properties.len().saturating_sub(required)
                });
                if optional > MAX_OPTIONAL_PROPERTIES {
                    let limit = MAX_OPTIONAL_PROPERTIES;
                    return Err(ConstraintError::TooManyProperties { count: optional, limit });
                }
                fields.values().try_for_each(|field| self.look_at(field))
            }
            _ => Ok(()),
        }
    }

    fn multiple(&mut self, step: &Number) -> Result<(), ConstraintError> {
        let digits: String =
            step.to_string().split(['e', 'E']).next().unwrap_or_default().replace(['-', '.'], "");
        let multiple: f64 = digits.trim_matches('0').parse().unwrap_or(1.0);
        self.product = self.product.max(1.0) * multiple;
        if multiple > MAX_MULTIPLE {
            return Err(ConstraintError::MultipleOf(step.to_string()));
        }
        Ok(())
    }

    /// Whether what is merged has a common multiple that is small enough. Asked at the end: definitions may stand before what
    /// merges them.
    fn check(&self) -> Result<(), ConstraintError> {
        if self.merges && self.product > MAX_COMMON_MULTIPLE {
            return Err(ConstraintError::MultipleOf(self.product.to_string()));
        }
        Ok(())
    }
}

/// How large a schema becomes when its combinations are multiplied out.
///
/// The library merges what stands side by side (`allOf`, `$ref` beside other keywords, `anyOf` beside `properties`) into one
/// schema, and distributes over alternatives to do so. `alternatives` counts those, `parts` the work to make them. Both
/// are upper estimates; a reference that is followed while it is being measured counts as one, since a recursive
/// definition is compiled once.
struct Unfolding<'a> {
    root: &'a Value,
    targets: HashMap<&'a str, Extent>,
    /// Schemas that are being measured, each inside the one before.
    depth: usize,
}

#[derive(Clone, Copy)]
struct Extent {
    alternatives: u64,
    parts: u64,
}

const ONE: Extent = Extent { alternatives: 1, parts: 1 };
const TOO_LARGE: Extent = Extent { alternatives: u64::MAX, parts: u64::MAX };

impl<'a> Unfolding<'a> {
    fn schema(&mut self, schema: &'a Value) -> Extent {
        let Value::Object(fields) = schema else { return ONE };
        if self.depth >= MAX_UNFOLDED_DEPTH {
            return TOO_LARGE;
        }
        self.depth += 1;
        let extent = self.fields(fields);
        self.depth -= 1;
        extent
    }

    fn fields(&mut self, fields: &'a Map<String, Value>) -> Extent {
        let mut alternatives = 1u64;
        let mut parts = 1u64;
        let mut merges = false;
        for keyword in ["anyOf", "oneOf"] {
            if let Some(Value::Array(options)) = fields.get(keyword) {
                let options: Vec<Extent> = options.iter().map(|option| self.schema(option)).collect();
                let sum: u64 = options.iter().fold(0, |sum, option| sum.saturating_add(option.alternatives));
                alternatives = alternatives.saturating_mul(sum.max(1));
                parts = options.iter().fold(parts, |sum, option| sum.saturating_add(option.parts));
                merges |= fields.len() > 1;
            }
        }
        if let Some(Value::Array(all)) = fields.get("allOf") {
            for part in all {
                let part = self.merged(part);
                alternatives = alternatives.saturating_mul(part.alternatives);
                parts = parts.saturating_add(part.parts);
            }
            merges = true;
        }
        if let Some(Value::String(target)) = fields.get("$ref") {
            let target = self.target(target);
            // Alone it is a name for a definition that is compiled once; beside others it is merged with them.
            if fields.len() > 1 {
                alternatives = alternatives.saturating_mul(target.alternatives);
                parts = parts.saturating_add(target.parts);
                merges = true;
            }
        }
        parts = parts.saturating_add(self.children(fields));
        if merges {
            parts = parts.saturating_mul(alternatives);
        }
        Extent { alternatives, parts: parts.saturating_add(alternatives) }
    }

    /// A schema that is merged with others: what it refers to becomes part of them.
    fn merged(&mut self, schema: &'a Value) -> Extent {
        match schema.get("$ref") {
            Some(Value::String(target)) if schema.as_object().is_some_and(|fields| fields.len() == 1) => {
                self.target(target)
            }
            _ => self.schema(schema),
        }
    }

    /// The parts of schemas that stand below `fields` and are merged with nothing.
    fn children(&mut self, fields: &'a Map<String, Value>) -> u64 {
        let mut parts = 0u64;
        for keyword in ONE_SCHEMA {
            match fields.get(keyword) {
                Some(Value::Array(items)) => {
                    for item in items {
                        parts = parts.saturating_add(self.schema(item).parts);
                    }
                }
                Some(item) => parts = parts.saturating_add(self.schema(item).parts),
                None => {}
            }
        }
        for keyword in MAP_OF_SCHEMAS {
            if let Some(Value::Object(items)) = fields.get(keyword) {
                for item in items.values() {
                    parts = parts.saturating_add(self.schema(item).parts);
                }
            }
        }
        parts
    }

    /// What a reference leads to, measured once.
    fn target(&mut self, reference: &'a str) -> Extent {
        if let Some(&extent) = self.targets.get(reference) {
            return extent;
        }
        self.targets.insert(reference, ONE);
        let found = match reference {
            "#" | "#/" => Some(self.root),
            _ => reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer)),
        };
        let extent = found.map_or(ONE, |schema| self.schema(schema));
        self.targets.insert(reference, extent);
        extent
    }
}
