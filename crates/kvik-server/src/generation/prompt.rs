//! From what was said to the tokens that the model reads.

use serde_json::{Map, Value, json};

use kvik_model::tokenizer::{EncodeOptions, TokenizerError};

use crate::{
    app::App,
    error::ApiError,
    generation::tool_use::ToolUse,
    wire::{
        chat::{ChatMessage, Content},
        completion::Prompt,
    },
};

/// Messages of one conversation.
const MOST_MESSAGES: usize = 4096;

/// The tokens of a conversation whose next message is the model's.
///
/// # Errors
/// 400: a message that cannot be written out, or that the model's template refuses.
pub fn conversation(
    app: &App,
    messages: &[ChatMessage],
    tools: &ToolUse,
    mut variables: Map<String, Value>,
) -> Result<Vec<u32>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages is empty: say something").param("messages"));
    }
    if messages.len() > MOST_MESSAGES {
        let message = format!("there are {} messages: at most {MOST_MESSAGES} are read", messages.len());
        return Err(ApiError::invalid(message).param("messages"));
    }
    let template = app.chat_template()?;
    let mut said = 0;
    let written: Result<Vec<Value>, ApiError> =
        messages.iter().enumerate().map(|(index, message)| written(index, message, &mut said)).collect();
    let mut written = written?;
    if let Some(tools) = tools.for_template() {
        said += tools.to_string().len();
        variables.insert("tools".to_owned(), tools);
    }
    if let Some(instructions) = tools.instructions() {
        said += instructions.len();
        instruct(&mut written, &instructions);
    }
    let encoded = template.encode_values(app.tokenizer()?, &Value::Array(written), said, true, &variables);
    encoded.map_err(|error| ApiError::invalid(error.to_string()).param("messages"))
}

/// Says `instructions` in the system message, which is made if there is none.
fn instruct(messages: &mut Vec<Value>, instructions: &str) {
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let said = first["content"].as_str().unwrap_or_default();
            first["content"] = json!(format!("{said}\n\n{instructions}"));
        }
        _ => messages.insert(0, json!({"role": "system", "content": instructions})),
    }
}

/// A message as templates expect it: text in one piece, arguments of calls as objects.
fn written(index: usize, message: &ChatMessage, said: &mut usize) -> Result<Value, ApiError> {
    let field = |name: &str| format!("messages[{index}].{name}");
    let role = match message.role.as_str() {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        role => {
            let role: String = role.chars().take(40).collect();
            let message = format!("there is no role '{role}': use system, user, assistant or tool");
            return Err(ApiError::invalid(message).param(field("role")));
        }
    };
    let content = text(message.content.as_ref(), &field("content"))?;
    *said += content.len();
    let calls = message.tool_calls.as_deref().unwrap_or_default();
    if content.is_empty() && message.content.is_none() && calls.is_empty() {
        let message = format!("messages[{index}] says nothing: give it content");
        return Err(ApiError::invalid(message).param(field("content")));
    }
    let mut written = json!({"role": role, "content": content});
    if !calls.is_empty() {
        let calls = calls.iter().map(|call| {
            *said += call.function.arguments.len();
            // Templates write objects out themselves; what is none is written as it came.
            let arguments = serde_json::from_str(&call.function.arguments)
                .unwrap_or_else(|_| Value::String(call.function.arguments.clone()));
            let function = json!({"name": call.function.name, "arguments": arguments});
            json!({"id": call.id, "type": "function", "function": function})
        });
        written["tool_calls"] = calls.collect();
    }
    for (name, value) in [("name", &message.name), ("tool_call_id", &message.tool_call_id)] {
        if let Some(value) = value {
            *said += value.len();
            written[name] = json!(value);
        }
    }
    Ok(written)
}

/// The text of a message's content.
fn text(content: Option<&Content>, field: &str) -> Result<String, ApiError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text.clone()),
        Some(Content::Parts(parts)) => {
            let mut whole = String::new();
            for part in parts {
                match (part.kind.as_str(), &part.text, &part.refusal) {
                    ("text" | "input_text" | "output_text", Some(text), _) => whole.push_str(text),
                    ("refusal", _, Some(text)) => whole.push_str(text),
                    (kind, ..) => {
                        let kind: String = kind.chars().take(40).collect();
                        let message =
                            format!("a part of the type '{kind}' cannot be read: this server reads text");
                        return Err(ApiError::invalid(message).param(field));
                    }
                }
            }
            Ok(whole)
        }
    }
}

/// The tokens of one or more prompts to be continued or embedded, and the texts of those that were texts.
///
/// # Errors
/// 400: there is none, or one that cannot be tokenised.
pub fn texts(app: &App, prompt: Prompt, field: &str) -> Result<Vec<Vec<u32>>, ApiError> {
    let vocabulary = app.facts().vocabulary;
    let known = |ids: Vec<u32>| match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => {
            let message =
                format!("there is no token {id}: ids go from 0 to {}", vocabulary.saturating_sub(1));
            Err(ApiError::invalid(message).param(field))
        }
        None => Ok(ids),
    };
    let most = app.config.max_choices;
    let few = |count: usize| match count {
        0 => Err(ApiError::invalid(format!("{field} is empty: give at least one text")).param(field)),
        count if count > most => {
            let message = format!("{field} has {count} texts: this server takes at most {most} at once");
            Err(ApiError::invalid(message).param(field))
        }
        _ => Ok(()),
    };
    let prompts = match prompt {
        Prompt::Text(text) => vec![encode(app, &text, field)?],
        Prompt::Texts(texts) => {
            few(texts.len())?;
            texts.iter().map(|text| encode(app, text, field)).collect::<Result<_, _>>()?
        }
        Prompt::Tokens(ids) => vec![known(ids)?],
        Prompt::TokenLists(lists) => {
            few(lists.len())?;
            lists.into_iter().map(known).collect::<Result<_, _>>()?
        }
    };
    Ok(prompts)
}

fn encode(app: &App, text: &str, field: &str) -> Result<Vec<u32>, ApiError> {
    let options = EncodeOptions { add_special: true, parse_special: true };
    let encoded = app.tokenizer()?.encode(text, options);
    encoded.map_err(|error: TokenizerError| ApiError::invalid(error.to_string()).param(field))
}
