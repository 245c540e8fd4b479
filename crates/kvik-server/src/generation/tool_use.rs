//! Functions that a chat's answer may or must call.

use kvik_engine::{
    ConstraintSource,
    tool_calls::{self, ToolCallFormat, ToolCallParser},
};
use serde_json::{Value, json};

use crate::{
    app::App,
    error::ApiError,
    wire::chat::{Tool, ToolChoice},
};

/// Functions of one request.
const MOST_TOOLS: usize = 128;

/// What an answer may call.
#[derive(Debug)]
pub struct ToolUse {
    tools: Vec<Tool>,
    choice: tool_calls::ToolChoice,
    format: ToolCallFormat,
    single: bool,
    /// The model's template knows nothing of functions, so that a system message has to tell of them.
    by_instructions: bool,
}

impl ToolUse {
    /// No function at all.
    pub fn none() -> Self {
        Self {
            tools: Vec::new(),
            choice: tool_calls::ToolChoice::None,
            format: ToolCallFormat::Hermes,
            single: false,
            by_instructions: false,
        }
    }

    /// Checks what a request says about functions.
    ///
    /// # Errors
    /// 400: one that cannot be called.
    pub fn new(
        app: &App,
        tools: Vec<Tool>,
        choice: Option<ToolChoice>,
        parallel: Option<bool>,
    ) -> Result<Self, ApiError> {
        let wrong = |field: &str, message: String| Err(ApiError::invalid(message).param(field));
        if tools.len() > MOST_TOOLS {
            return wrong(
                "tools",
                format!("there are {} tools: at most {MOST_TOOLS} can be offered", tools.len()),
            );
        }
        if let Some(tool) = tools.iter().find(|tool| tool.kind != "function") {
            let kind: String = tool.kind.chars().take(40).collect();
            return wrong(
                "tools",
                format!("a tool of the type '{kind}' cannot be called: use the type function"),
            );
        }
        let choice = match choice {
            None if tools.is_empty() => tool_calls::ToolChoice::None,
            None => tool_calls::ToolChoice::Auto,
            Some(ToolChoice::Function(named)) => tool_calls::ToolChoice::Named(named.function.name),
            Some(ToolChoice::Mode(mode)) => match mode.as_str() {
                "none" => tool_calls::ToolChoice::None,
                "auto" => tool_calls::ToolChoice::Auto,
                "required" => tool_calls::ToolChoice::Required,
                _ => {
                    let message = "tool_choice must be none, auto, required or a function".to_owned();
                    return wrong("tool_choice", message);
                }
            },
        };
        match &choice {
            tool_calls::ToolChoice::Required if tools.is_empty() => {
                return wrong("tool_choice", "tool_choice is required, but there are no tools".to_owned());
            }
            tool_calls::ToolChoice::Named(name) if !tools.iter().any(|tool| tool.function.name == *name) => {
                let name: String = name.chars().take(64).collect();
                return wrong(
                    "tool_choice",
                    format!("tool_choice names '{name}', which is none of the tools"),
                );
            }
            _ => {}
        }
        if tools.is_empty() {
            return Ok(Self { choice, ..Self::none() });
        }
        let source = app.chat_template()?.source();
        Ok(Self {
            format: ToolCallFormat::of_template(source),
            by_instructions: !source.contains("tools"),
            single: parallel == Some(false),
            choice,
            tools,
        })
    }

    /// Whether any function may be called.
    pub fn any(&self) -> bool {
        !self.tools.is_empty() && self.choice != tool_calls::ToolChoice::None
    }

    /// Whether at most one may be.
    pub fn single(&self) -> bool {
        self.single
    }

    /// What finds the calls in an answer.
    pub fn parser(&self, app: &App) -> Option<ToolCallParser> {
        let tokenizer = app.tokenizer().ok().filter(|_| self.any())?;
        let names = self.tools.iter().map(|tool| tool.function.name.clone());
        Some(ToolCallParser::new(self.format, names).with_tokenizer(tokenizer))
    }

    /// What the model's template is given as `tools`.
    pub fn for_template(&self) -> Option<Value> {
        (self.any() && !self.by_instructions).then(|| json!(self.tools))
    }

    /// What a system message has to say, where the template says nothing of functions.
    pub fn instructions(&self) -> Option<String> {
        let tools = || self.tools.iter().map(|tool| json!(tool)).collect::<Vec<_>>();
        (self.any() && self.by_instructions).then(|| tool_calls::instructions(self.format, &tools()))
    }

    /// What an answer that must call a function looks like.
    ///
    /// # Errors
    /// 400: functions that no grammar can be made of.
    pub fn constraint(&self, app: &App) -> Result<Option<ConstraintSource>, ApiError> {
        if !matches!(self.choice, tool_calls::ToolChoice::Required | tool_calls::ToolChoice::Named(_)) {
            return Ok(None);
        }
        let declared = self.tools.iter().map(|tool| tool_calls::Tool {
            name: tool.function.name.clone(),
            description: tool.function.description.clone(),
            parameters: tool.function.parameters.clone(),
        });
        let declared: Vec<_> = declared.collect();
        let forced =
            tool_calls::forced_call(self.format, app.tokenizer()?, &declared, &self.choice, !self.single);
        forced.map_err(|error| ApiError::invalid(error.to_string()).param("tools"))
    }
}
