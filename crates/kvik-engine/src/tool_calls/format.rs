//! The forms in which models write calls, and which one a chat template means.

use kvik_model::{Tokenizer, tokenizer::TokenKind};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ToolCallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Nous Hermes, Qwen and what was trained like them.
    Hermes,
    /// `<tool_call>[{"name": …, "arguments": {…}}, …]</tool_call>`: SmolLM2.
    SmolLm,
    /// The whole answer is `{"name": …, "parameters": {…}}`, or several with `;` between: Llama 3.1 and later.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral up to its tokenizer of version 3.
    Mistral,
    /// `[TOOL_CALLS]name[ARGS]{…}`: Mistral from its tokenizer of version 11 on.
    MistralArgs,
    /// The whole answer is `{"name": …, "arguments": {…}}` or a list of such: models that were trained for none.
    Json,
}

impl ToolCallFormat {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hermes, Self::SmolLm, Self::Llama, Self::Mistral, Self::MistralArgs, Self::Json];

    /// The form that a chat template shows its model.
    pub fn of_template(source: &str) -> Self {
        let mentions = |mark: &str| source.contains(mark);
        if mentions("[TOOL_CALLS]") {
            if mentions("[ARGS]") { Self::MistralArgs } else { Self::Mistral }
        } else if mentions("<tool_call>") {
            if mentions("<tool_call>[") { Self::SmolLm } else { Self::Hermes }
        } else if mentions("<|python_tag|>") || (mentions("<|start_header_id|>") && mentions("tools")) {
            Self::Llama
        } else if mentions("SmolLM") {
            Self::SmolLm
        } else {
            Self::Json
        }
    }

    /// What calls begin with; `None` where the whole answer is one.
    pub(super) fn opening(self) -> Option<&'static str> {
        match self {
            Self::Hermes | Self::SmolLm => Some("<tool_call>"),
            Self::Llama => Some("<|python_tag|>"),
            Self::Mistral | Self::MistralArgs => Some("[TOOL_CALLS]"),
            Self::Json => None,
        }
    }

    /// What calls end with.
    pub(super) fn closing(self) -> Option<&'static str> {
        match self {
            Self::Hermes | Self::SmolLm => Some("</tool_call>"),
            Self::Llama | Self::Mistral | Self::MistralArgs | Self::Json => None,
        }
    }

    /// Whether an answer that begins with `{` or `[` may be a call without any mark.
    pub(super) fn is_bare(self) -> bool {
        matches!(self, Self::Llama | Self::Json)
    }

    /// The key of a call's arguments.
    pub(super) fn arguments_key(self) -> &'static str {
        if self == Self::Llama { "parameters" } else { "arguments" }
    }

    /// Marks that are control tokens of the model: a text that leaves those out must have these back before it is parsed
    /// ([`ToolCallParser::push_token`](super::ToolCallParser::push_token)).
    pub(super) fn hidden_marks(self, tokenizer: &Tokenizer) -> Vec<(u32, &'static str)> {
        let marks = self.opening().into_iter().chain(self.closing());
        let marks = marks.chain((self == Self::MistralArgs).then_some("[ARGS]"));
        marks.filter_map(|mark| Some((control_token(tokenizer, mark)?, mark))).collect()
    }
}

/// The control token that is written as `mark`, if the model has one.
pub(super) fn control_token(tokenizer: &Tokenizer, mark: &str) -> Option<u32> {
    tokenizer.token_id(mark).filter(|&id| tokenizer.kind(id) == TokenKind::Control)
}
