//! The grammar under which a model can only call functions.
//!
//! What surrounds the arguments is written as the model's template writes it, character by character, so that the model is
//! where its training left it; the arguments follow the function's JSON schema.

use super::{
    Tool, ToolChoice,
    format::{ToolCallFormat, control_token},
};
use crate::constraint::{ConstraintError, ConstraintSource, check_schema, with_json_options};
use kvik_model::Tokenizer;
use serde_json::{Value, json};

/// The most calls in one answer, so that no model can go on for ever.
const MAX_CALLS: usize = 16;
/// The longest name of a function; OpenAI's limit.
const MAX_NAME_CHARS: usize = 64;

/// Functions that cannot be offered, or a choice that cannot be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTools {
    /// A call is wanted and there is nothing to call.
    #[error("a call is required, and there are no tools: give at least one")]
    NoTools,
    /// The function that must be called is none of those that there are.
    #[error("the tool {name:?} must be called, and there is none of that name; there are: {known}")]
    UnknownTool {
        /// The name.
        name: String,
        /// All names.
        known: String,
    },
    /// A name that no model can write in all forms.
    #[error("the tool name {0:?} is not valid: use 1 to 64 letters, digits, underscores, hyphens and dots")]
    Name(String),
    /// The parameters cannot be a constraint.
    #[error("the parameters of the tool {name:?}: {reason}")]
    Parameters {
        /// The function.
        name: String,
        /// Why.
        reason: ConstraintError,
    },
}

/// The constraint under which a model of this format and tokenizer can only call `tools`, as `choice` says; `None` if it
/// need not call any. Several calls are possible with `parallel`, where the format has them.
///
/// # Errors
/// [`InvalidTools`] says what is wrong with the tools or the choice.
pub fn forced_call(
    format: ToolCallFormat,
    tokenizer: &Tokenizer,
    tools: &[Tool],
    choice: &ToolChoice,
    parallel: bool,
) -> Result<Option<ConstraintSource>, InvalidTools> {
    for tool in tools {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if tool.name.is_empty() || tool.name.len() > MAX_NAME_CHARS || !tool.name.chars().all(fits) {
            return Err(InvalidTools::Name(tool.name.clone()));
        }
    }
    let wanted: Vec<&Tool> = match choice {
        ToolChoice::None | ToolChoice::Auto => return Ok(None),
        ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => {
            let wanted: Vec<&Tool> = tools.iter().filter(|tool| tool.name == *name).collect();
            if wanted.is_empty() && !tools.is_empty() {
                let known: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
                return Err(InvalidTools::UnknownTool { name: name.clone(), known: known.join(", ") });
            }
            wanted
        }
    };
    if wanted.is_empty() {
        return Err(InvalidTools::NoTools);
    }
    grammar(format, tokenizer, &wanted, parallel).map(ConstraintSource::Grammar).map(Some)
}

/// The grammar of one or several calls.
fn grammar(
    format: ToolCallFormat,
    tokenizer: &Tokenizer,
    tools: &[&Tool],
    parallel: bool,
) -> Result<String, InvalidTools> {
    let mark = |text: &str| match control_token(tokenizer, text) {
        Some(id) => format!("<[{id}]>"),
        None => literal(text),
    };
    let opening = format.opening().map(mark).unwrap_or_default();
    let closing = format.closing().map(mark).unwrap_or_default();
    // One, or one and more with something between.
    let list = |one: &str, between: &str| match parallel {
        true => format!("{one} ({between} {one}){{0,{}}}", MAX_CALLS - 1),
        false => one.to_owned(),
    };
    let mut grammar = match format {
        ToolCallFormat::Hermes => {
            let tagged = format!("tagged: {opening} \"\\n\" call \"\\n\" {closing}");
            format!("start: {}\n{tagged}\n", list("tagged", "\"\\n\""))
        }
        ToolCallFormat::SmolLm | ToolCallFormat::Mistral => {
            format!("start: {opening} \"[\" {} \"]\" {closing}\n", list("call", "\", \""))
        }
        ToolCallFormat::MistralArgs => format!("start: {}\ntagged: {opening} call\n", list("tagged", "")),
        ToolCallFormat::Llama | ToolCallFormat::Json => "start: call\n".to_owned(),
    };

    let names: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
    grammar.push_str(&format!("call: {}\n", names.join(" | ")));
    for (index, tool) in tools.iter().enumerate() {
        let schema = parameters(tool)
            .map_err(|reason| InvalidTools::Parameters { name: tool.name.clone(), reason })?;
        let call = if format == ToolCallFormat::MistralArgs {
            format!("{} {} arguments_{index}", literal(&tool.name), mark("[ARGS]"))
        } else {
            let key = format.arguments_key();
            let before = format!("{{\"name\": \"{}\", \"{key}\": ", tool.name);
            format!("{} arguments_{index} \"}}\"", literal(&before))
        };
        grammar.push_str(&format!("call_{index}: {call}\narguments_{index}: %json {schema}\n"));
    }
    Ok(grammar)
}

/// The schema of a function's arguments: an object in any case.
fn parameters(tool: &Tool) -> Result<Value, ConstraintError> {
    let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let mut schema = tool.parameters.clone().filter(|schema| !schema.is_null()).unwrap_or(nothing);
    let typed = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    if schema.is_object() && typed.iter().all(|keyword| schema.get(keyword).is_none()) {
        schema["type"] = json!("object");
    }
    check_schema(&schema)?;
    with_json_options(&schema)
}

/// A text in the grammar.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
