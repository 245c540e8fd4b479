//! `response_format`: what form an answer must have.

use kvik_engine::{Constraint, ConstraintError, ConstraintSource};
use serde_json::json;

use super::tool_use::ToolUse;
use crate::{app::App, error::ApiError, wire::generation::ResponseFormat};

/// What an answer must look like, by its form or because it must call a function.
///
/// # Errors
/// 400: a form that is not known, that lacks its schema, grammar or expression, or that this model cannot follow.
pub fn constraint(
    app: &App,
    format: Option<&ResponseFormat>,
    tools: &ToolUse,
) -> Result<Option<Constraint>, ApiError> {
    let form = format.map(source).transpose()?.flatten();
    let Some(source) = tools.constraint(app)?.or(form) else { return Ok(None) };
    let refused = |error: ConstraintError| {
        ApiError::invalid(error.to_string()).param("response_format").code("invalid_constraint")
    };
    app.constraints()?.compile(&source).map(Some).map_err(refused)
}

fn source(format: &ResponseFormat) -> Result<Option<ConstraintSource>, ApiError> {
    let lacks = |field: &str| {
        let message = format!("response_format of the type {} needs the field '{field}'", format.kind);
        ApiError::invalid(message).param(format!("response_format.{field}"))
    };
    Ok(match format.kind.as_str() {
        "text" => None,
        "json_object" => Some(ConstraintSource::JsonObject),
        "json_schema" => {
            let schema = format.json_schema.as_ref().ok_or_else(|| lacks("json_schema"))?;
            Some(ConstraintSource::JsonSchema(schema.schema.clone().unwrap_or_else(|| json!(true))))
        }
        "grammar" => Some(ConstraintSource::Grammar(format.grammar.clone().ok_or_else(|| lacks("grammar"))?)),
        "regex" => Some(ConstraintSource::Regex(format.regex.clone().ok_or_else(|| lacks("regex"))?)),
        kind => {
            let kind: String = kind.chars().take(40).collect();
            let message = format!(
                "there is no response_format '{kind}': use text, json_object, json_schema, grammar or regex"
            );
            return Err(ApiError::invalid(message).param("response_format.type"));
        }
    })
}
