//! From what a request asks for to a constraint that runs.
//!
//! A compiler belongs to one model and is shared by all its requests; compiling takes milliseconds and is done where the request
//! comes in, not in the engine's loop. Schemas and grammars come from strangers: they are measured first
//! ([`limits`](super::limits)), then compiled within the library's own bounds, on a stack of their own, because descending
//! through nested parentheses takes stack and a process has no second chance when that ends.

use super::{
    error::ConstraintError,
    limits::{check_choices, check_grammar, check_regex, check_schema},
    matcher::Constraint,
    source::ConstraintSource,
    vocabulary::token_environment,
};
use kvik_model::Tokenizer;
use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
};
use serde_json::{Value, json};
use std::{fmt, thread};

/// The stack on which sources are compiled; only what is touched takes memory.
const STACK_BYTES: usize = 256 << 20;
/// White space between two tokens of JSON: a space, or a line break with its indentation. JSON allows any amount, and
/// small models loop in it.
const JSON_SPACE: &str = r" |\n {0,32}";
/// The most of the library's reason that is passed on.
const REASON_CHARS: usize = 300;

/// What compiling and each step may cost. The library's defaults are for trusted schemas of megabytes; these keep a
/// step under about 20 ms and a constraint under about 40 MB in the worst case.
fn parser_limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiles constraints for one model.
pub struct ConstraintCompiler {
    factory: ParserFactory,
}

impl fmt::Debug for ConstraintCompiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ConstraintCompiler").finish_non_exhaustive()
    }
}

impl ConstraintCompiler {
    /// A compiler for texts in the tokens of `tokenizer`. Takes some milliseconds per 10,000 tokens.
    ///
    /// # Errors
    /// [`ConstraintError::Vocabulary`] if the vocabulary is out of bounds.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let environment = token_environment(tokenizer)?;
        let mut factory = ParserFactory::new_simple(&environment)
            .map_err(|error| ConstraintError::Vocabulary(reason(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = parser_limits();
        Ok(Self { factory })
    }

    /// The constraint that `source` asks for, at the beginning of a text.
    ///
    /// # Errors
    /// [`ConstraintError`] if it means nothing, needs what is not supported, is too large, or no text of the model
    /// follows it.
    pub fn compile(&self, source: &ConstraintSource) -> Result<Constraint, ConstraintError> {
        let grammar = grammar(source)?;
        let compiled = on_large_stack(|| {
            let parser = self.factory.create_parser(grammar).map_err(|error| error.to_string())?;
            let mut matcher = Matcher::new(Ok(parser));
            // Finds out that the empty text is all that there is, where it is.
            matcher.consume_tokens(&[]).map_err(|error| error.to_string())?;
            // The first step is the dearest, for it builds the automata. What cannot begin is found out here, too.
            let first = matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
            let impossible = first.is_zero() && !matcher.is_stopped();
            if impossible { Err("NoExtensionBias".to_owned()) } else { Ok(matcher) }
        });
        let refused = |error: String| {
            let mut reason = reason(&error);
            if matches!(source, ConstraintSource::Grammar(grammar) if grammar.contains("::=")) {
                reason.push_str("; GBNF is written in Lark so: root ::= x becomes start: x");
            }
            ConstraintError::Refused { what: source.kind(), reason }
        };
        compiled.and_then(|compiled| compiled).map(Constraint::new).map_err(refused)
    }
}

/// The source in the library's terms.
fn grammar(source: &ConstraintSource) -> Result<TopLevelGrammar, ConstraintError> {
    match source {
        ConstraintSource::JsonSchema(schema) => {
            check_schema(schema)?;
            Ok(TopLevelGrammar::from_json_schema(with_json_options(schema)?))
        }
        ConstraintSource::JsonObject => {
            Ok(TopLevelGrammar::from_json_schema(with_json_options(&json!({"type": "object"}))?))
        }
        ConstraintSource::Grammar(grammar) => {
            check_grammar(grammar)?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
        ConstraintSource::Regex(regex) => {
            check_regex(regex)?;
            Ok(TopLevelGrammar::from_regex(without_anchors(regex)))
        }
        ConstraintSource::Choice(choices) => {
            check_choices(choices)?;
            if choices.iter().all(String::is_empty) {
                // An expression for nothing is still a word to come.
                return Ok(TopLevelGrammar::from_lark("start: \"\"".to_owned()));
            }
            let choices: Vec<String> = choices.iter().map(|choice| regex_syntax::escape(choice)).collect();
            Ok(TopLevelGrammar::from_regex(&format!("(?:{})", choices.join("|"))))
        }
    }
}

/// A schema as an object that also says how JSON is written, unless it says so itself.
pub(crate) fn with_json_options(schema: &Value) -> Result<Value, ConstraintError> {
    let what = "JSON schema";
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => {
            return Err(ConstraintError::Refused {
                what,
                reason: "it is false, which allows nothing".into(),
            });
        }
        _ => {
            let reason = "it must be an object, such as {\"type\": \"object\"}, or true".into();
            return Err(ConstraintError::Refused { what, reason });
        }
    };
    if schema.get("x-guidance").is_none() {
        schema["x-guidance"] = json!({"whitespace_pattern": JSON_SPACE});
    }
    Ok(schema)
}

/// An expression without `^` before it and `$` behind it: it must match the whole text in any case, and the library
/// knows no anchors.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        // An odd number of backslashes makes it a dollar sign.
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

/// Runs `work` where a deep recursion has room.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("constraint".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|error| error.to_string())?;
        thread.join().map_err(|_| "the compiler failed on it".to_owned())
    })
}

/// The library's reason, without its marks, on one line.
pub(super) fn reason(error: &str) -> String {
    let error = error.replace("<non-verbose/>", "");
    if error.trim() == "NoExtensionBias" {
        return "no text of this model follows it".to_owned();
    }
    let mut line = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(REASON_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}
