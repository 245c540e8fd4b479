//! Chat templates: a conversation written out as the text that a model was trained on.
//!
//! Each chat model marks turns in its own way, and its file carries the Jinja program that writes them. The programs
//! expect the environment that Hugging Face's `transformers` gives them: blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, a `tojson` that writes as Python does. A template comes from a stranger, so it
//! runs on a budget: every instruction and every byte it makes costs fuel, and recursion is bounded.

mod python_json;
mod strftime;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::SystemTime,
};

use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::{
    checkpoint::Checkpoint,
    metadata::MetadataError,
    tokenizer::{EncodeOptions, Tokenizer, TokenizerError},
};

/// One turn of a conversation. Templates see what is empty or absent as undefined, but for the content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The functions that an assistant's message calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Who speaks, by name; the function, in a tool's message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// A call in an assistant's message, in the form that templates expect: `{"type": "function", "id": …, "function": {"name": …,
/// "arguments": {…}}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    kind: String,
    /// What the answer refers to.
    #[serde(default)]
    pub id: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// Its arguments: an object, which templates write out themselves, or a string if they are no JSON.
    pub arguments: serde_json::Value,
}

impl ToolCall {
    /// A call of the function `name`, whose arguments are the JSON text `arguments`.
    pub fn new(id: impl Into<String>, name: impl Into<String>, arguments: &str) -> Self {
        let arguments = match arguments.trim() {
            "" => json!({}),
            // What a model wrote may be broken; then it is shown to it as it was.
            text => serde_json::from_str(text).unwrap_or_else(|_| arguments.into()),
        };
        Self { kind: function(), id: id.into(), function: FunctionCall { name: name.into(), arguments } }
    }
}

fn function() -> String {
    "function".to_owned()
}

/// Why a conversation cannot be written out.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template is no Jinja program.
    #[error("the model's chat template is broken: {0}; use plain completion instead")]
    Broken(String),
    /// The template refuses the conversation, in its own words.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed.
    #[error("the model's chat template failed: {0}")]
    Failed(String),
    /// The template used up its budget.
    #[error(
        "the model's chat template takes more steps or memory than any conversation needs; do not trust this model"
    )]
    Exhausted,
    /// The metadata holds something else where the template should be.
    #[error("the model's chat template cannot be read: {0}")]
    Metadata(#[from] MetadataError),
    /// A file that holds the template cannot be read.
    #[error("cannot read {path}: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The conversation is written out but cannot be tokenised.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A model's chat template, ready to write out conversations.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

/// What a template may cost whatever the conversation, in instructions or 64 bytes of data each.
const BASE_FUEL: u64 = 500_000;
/// What it may cost in addition for each message; well-known templates take a few hundred.
const FUEL_PER_MESSAGE: u64 = 1000;
/// What it may cost at most.
const MAX_FUEL: u64 = 5_000_000;
/// How deep macros may call each other.
const MAX_RECURSION: usize = 100;
/// The stack on which templates run. A template within its budget can nest lists so deep that dropping them takes
/// most of it; an honest one touches a few pages.
const STACK_BYTES: usize = 1 << 30;
/// The template's name in its error messages.
const NAME: &str = "chat template";
/// What marks an error that the template raised itself.
const RAISED: &str = "raised by the template: ";

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`ChatTemplateError::Broken`] with line and reason.
    pub fn new(source: &str) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| ChatTemplateError::Broken(sentence(&error)))?);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
        });
        environment
            .add_function("strftime_now", |format: &str| strftime::strftime(format, SystemTime::now()));
        environment.add_filter("tojson", python_json::tojson);
        // In Python nothing is not iterable, and templates ask that of `tools`.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        let program = without_generation_tags(source);
        on_large_stack(|| {
            let added = environment.add_template_owned(NAME, program);
            added.map_err(|error| ChatTemplateError::Broken(sentence(&error)))
        })??;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template of an opened model, or `None` if it has none, as base models do not.
    ///
    /// # Errors
    /// The template cannot be read or is broken.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Option<Self>, ChatTemplateError> {
        let source = match checkpoint.folder() {
            Some(folder) => from_folder(folder)?,
            None => checkpoint.metadata().find::<&str>("tokenizer.chat_template")?.map(str::to_owned),
        };
        source.as_deref().map(Self::new).transpose()
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template tells the model of functions that it may call. Another leaves them out without a word.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// The tokens of `messages`, written out. If `add_generation_prompt`, the opening of the assistant's turn follows,
    /// so that the model answers. BOS is put before them if the tokenizer's file asks for it and the template does
    /// not write it.
    ///
    /// # Errors
    /// As [`render`](Self::render), and [`ChatTemplateError::Tokenizer`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, ChatTemplateError> {
        self.encode_with(tokenizer, messages, add_generation_prompt, &Map::new())
    }

    /// As [`encode`](Self::encode), with what else the template can see: `tools` (a list of objects as
    /// `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`), `enable_thinking` and the like.
    /// The names of special tokens cannot be replaced.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<Vec<u32>, ChatTemplateError> {
        let roles = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unknown()),
            ("pad_token", tokenizer.padding()),
        ];
        let mut variables = variables.clone();
        for (name, id) in roles {
            variables.remove(name);
            variables.extend(id.map(|id| (name.to_owned(), json!(tokenizer.token_text(id)))));
        }
        let text = self.render(messages, add_generation_prompt, &variables)?;
        let mut ids = tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true })?;
        if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Writes out `messages`. `variables` are what else the template can see: `bos_token` and its like, `tools`,
    /// `enable_thinking`.
    ///
    /// # Errors
    /// The template refuses the conversation, fails, or uses up its budget.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, ChatTemplateError> {
        let mut environment = self.environment.clone();
        let said: usize = messages.iter().map(|message| message.content.len()).sum();
        let fuel =
            BASE_FUEL + FUEL_PER_MESSAGE.saturating_mul(messages.len() as u64).saturating_add(said as u64);
        environment.set_fuel(Some(fuel.min(MAX_FUEL)));
        // `transformers` defines these two whether or not there are any.
        let mut context = json!({"tools": null, "documents": null});
        for (name, value) in variables {
            context[name] = value.clone();
        }
        context["messages"] = json!(messages);
        context["add_generation_prompt"] = json!(add_generation_prompt);
        // Errors hold values of the template's: they too are dropped where there is room.
        on_large_stack(|| {
            let rendered = environment.get_template(NAME).and_then(|program| program.render(Serde(&context)));
            rendered.map_err(|error| {
                let reason = error.detail().and_then(|detail| detail.strip_prefix(RAISED));
                match (error.kind(), reason) {
                    (ErrorKind::OutOfFuel, _) => ChatTemplateError::Exhausted,
                    (_, Some(reason)) => ChatTemplateError::Refused(reason.to_owned()),
                    (_, None) => ChatTemplateError::Failed(sentence(&error)),
                }
            })
        })?
    }
}

/// Runs `work` where a deep recursion has room.
fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, ChatTemplateError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| ChatTemplateError::Failed(error.to_string()))?;
        thread.join().map_err(|_| ChatTemplateError::Failed("its interpreter panicked".to_owned()))
    })
}

/// The template in a Hugging Face model's folder: a file of its own, or in the tokenizer's configuration, where it
/// may be one of several by name.
fn from_folder(folder: &Path) -> Result<Option<String>, ChatTemplateError> {
    if let Some(template) = read(&folder.join("chat_template.jinja"))? {
        return Ok(Some(template));
    }
    let path = folder.join("tokenizer_config.json");
    let Some(config) = read(&path)? else { return Ok(None) };
    let config: serde_json::Value = serde_json::from_str(&config)
        .map_err(|error| ChatTemplateError::Unreadable { path, reason: error.to_string() })?;
    let template = &config["chat_template"];
    let named =
        |name: &str| template.as_array()?.iter().find(|entry| entry["name"] == name)?["template"].as_str();
    Ok(template.as_str().or_else(|| named("default")).map(str::to_owned))
}

/// The text of a file, or `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, ChatTemplateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ChatTemplateError::Unreadable { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// Makes the tags that mark an answer for training, `{% generation %}`, ones that do nothing.
fn without_generation_tags(source: &str) -> String {
    let mut program = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        program.push_str(before);
        program.push_str("{%");
        rest = tag;
        let dash = tag.strip_prefix('-').unwrap_or(tag);
        let name = dash.trim_start();
        for (mark, nothing) in [("generation", " if true"), ("endgeneration", " endif")] {
            if let Some(after) = name.strip_prefix(mark)
                && after.trim_start().trim_start_matches('-').starts_with("%}")
            {
                program.push_str(&tag[..tag.len() - dash.len()]);
                program.push_str(nothing);
                program.push(' ');
                rest = after.trim_start();
            }
        }
    }
    program.push_str(rest);
    program
}

/// An error as a sentence: what, and in which line of the template.
fn sentence(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}
