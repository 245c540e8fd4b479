//! From what was said to the tokens that the model reads.

use kvik_model::{
    Message, ToolCall,
    tokenizer::{EncodeOptions, TokenizerError},
};
use serde_json::{Map, Value};

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
    let mut written = messages.iter().enumerate().map(written).collect::<Result<Vec<Message>, ApiError>>()?;
    if let Some(tools) = tools.for_template() {
        variables.insert("tools".to_owned(), tools);
    }
    if let Some(instructions) = tools.instructions() {
        instruct(&mut written, &instructions);
    }
    let encoded = template.encode_with(app.tokenizer()?, &written, true, &variables);
    encoded.map_err(|error| ApiError::invalid(error.to_string()).param("messages"))
}

/// Says `instructions` in the system message, which is made if there is none.
fn instruct(messages: &mut Vec<Message>, instructions: &str) {
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(first) => first.content = format!("{}\n\n{instructions}", first.content),
        None => messages.insert(0, Message::new("system", instructions)),
    }
}

/// A message as templates expect it: text in one piece, arguments of calls as objects.
fn written((index, message): (usize, &ChatMessage)) -> Result<Message, ApiError> {
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
    let calls = message.tool_calls.as_deref().unwrap_or_default();
    if message.content.is_none() && calls.is_empty() {
        let message = format!("messages[{index}] says nothing: give it content");
        return Err(ApiError::invalid(message).param(field("content")));
    }
    let calls =
        calls.iter().map(|call| ToolCall::new(&call.id, &call.function.name, &call.function.arguments));
    Ok(Message {
        role: role.to_owned(),
        content: text(message.content.as_ref(), &field("content"))?,
        tool_calls: calls.collect(),
        tool_call_id: message.tool_call_id.clone(),
        name: message.name.clone(),
    })
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

/// The tokens of one or more prompts to be continued or embedded.
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
    if prompts.iter().any(Vec::is_empty) && app.tokenizer()?.bos().is_none() {
        let message =
            format!("{field} is empty, and the model has no token that begins a text: give it a word");
        return Err(ApiError::invalid(message).param(field));
    }
    Ok(prompts)
}

fn encode(app: &App, text: &str, field: &str) -> Result<Vec<u32>, ApiError> {
    let options = EncodeOptions { add_special: true, parse_special: true };
    let encoded = app.tokenizer()?.encode(text, options);
    encoded.map_err(|error: TokenizerError| ApiError::invalid(error.to_string()).param(field))
}
