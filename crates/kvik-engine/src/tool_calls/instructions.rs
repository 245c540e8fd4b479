//! What to tell a model whose chat template knows nothing of functions.

use super::format::ToolCallFormat;
use serde_json::Value;

/// A text for the system message that offers `tools` (as the request has them) and shows how to call them.
pub fn instructions(format: ToolCallFormat, tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(Value::to_string).collect();
    let key = format.arguments_key();
    let call = format!("{{\"name\": \"function name\", \"{key}\": {{\"parameter\": \"value\"}}}}");
    let call = match format {
        ToolCallFormat::Hermes => format!("<tool_call>\n{call}\n</tool_call>"),
        ToolCallFormat::SmolLm => format!("<tool_call>[{call}]</tool_call>"),
        ToolCallFormat::Mistral => format!("[TOOL_CALLS][{call}]"),
        ToolCallFormat::MistralArgs => "[TOOL_CALLS]function name[ARGS]{\"parameter\": \"value\"}".to_owned(),
        ToolCallFormat::Llama | ToolCallFormat::Json => call,
    };
    format!(
        "You can call functions. These are there, as JSON with a schema of their parameters:\n<tools>[{}]</tools>\n\nIf \
         one helps, answer with a call and nothing else, in this form:\n{call}\nIf none helps, answer as usual.",
        tools.join(", ")
    )
}
