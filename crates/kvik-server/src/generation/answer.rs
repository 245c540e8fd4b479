//! One answer of a chat, piece by piece: the same whether it is sent as it comes or whole.

use std::sync::Arc;

use kvik_engine::{
    Update,
    tool_calls::{ToolCallParser, ToolDelta},
};

use super::{Running, finish_reason, logprobs, tool_use::ToolUse};
use crate::{
    app::App,
    error::ApiError,
    wire::chat::{ChatLogprobs, ChatTokenLogprob, FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta},
};

/// What is new of an answer.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// More text.
    pub text: String,
    /// More of its calls.
    pub calls: Vec<ToolCallDelta>,
    /// The log-probabilities of more tokens.
    pub logprobs: Vec<ChatTokenLogprob>,
    /// Why it ended, if it did.
    pub finish: Option<&'static str>,
}

/// An answer whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// Its calls.
    pub calls: Vec<ToolCall>,
    /// The log-probabilities of its tokens.
    pub logprobs: ChatLogprobs,
    /// Why it ended.
    pub finish: Option<&'static str>,
}

impl Whole {
    /// Adds a piece.
    pub fn add(&mut self, piece: Piece) {
        self.text.push_str(&piece.text);
        self.logprobs.content.extend(piece.logprobs);
        self.finish = piece.finish.or(self.finish);
        for delta in piece.calls {
            if let (Some(id), Some(name)) = (delta.id, delta.function.name) {
                let function = FunctionCall { name, arguments: String::new() };
                self.calls.push(ToolCall { id, kind: "function".to_owned(), function });
            }
            if let Some(call) = self.calls.get_mut(delta.index) {
                call.function.arguments.push_str(&delta.function.arguments);
            }
        }
    }
}

/// Tells the text of one answer from the calls in it.
pub struct AnswerParser {
    app: Arc<App>,
    calls: Option<ToolCallParser>,
    /// At most one call is passed on.
    single: bool,
    called: bool,
}

impl AnswerParser {
    /// For an answer that may use `tools`.
    pub fn new(app: &Arc<App>, tools: &ToolUse) -> Self {
        Self { app: Arc::clone(app), calls: tools.parser(app), single: tools.single(), called: false }
    }

    /// What an update of the service means for the answer.
    pub fn piece(&mut self, update: Update) -> Piece {
        let mut piece = Piece::default();
        match update {
            Update::Token { id, text, logprob } => {
                if let Ok(tokenizer) = self.app.tokenizer() {
                    // The token that ends the text is no part of it.
                    let logprob = logprob.filter(|_| !tokenizer.is_end_of_generation(id));
                    piece.logprobs.extend(logprob.map(|logprob| logprobs::for_chat(tokenizer, &logprob)));
                }
                match &mut self.calls {
                    None => piece.text = text,
                    Some(parser) => {
                        let deltas = parser.push_token(id, &text);
                        self.add(deltas, &mut piece);
                    }
                }
            }
            Update::Tail(text) => match &mut self.calls {
                None => piece.text = text,
                Some(parser) => {
                    let deltas = parser.push(&text);
                    self.add(deltas, &mut piece);
                }
            },
            Update::Finished { reason, .. } => {
                let deltas = self.calls.as_mut().map(ToolCallParser::finish).unwrap_or_default();
                self.add(deltas, &mut piece);
                piece.finish = Some(match finish_reason(&reason) {
                    "stop" if self.called => "tool_calls",
                    reason => reason,
                });
            }
            Update::Started { .. } | Update::Embedding(_) | Update::Failed(_) => {}
        }
        piece
    }

    fn add(&mut self, deltas: Vec<ToolDelta>, piece: &mut Piece) {
        for delta in deltas {
            match delta {
                ToolDelta::Text(text) => piece.text.push_str(&text),
                ToolDelta::Call { index, .. } | ToolDelta::Arguments { index, .. }
                    if self.single && index > 0 => {}
                ToolDelta::Call { index, name } => {
                    self.called = true;
                    let function = FunctionCallDelta { name: Some(name), arguments: String::new() };
                    let (id, kind) = (Some(self.app.id("call_")), Some("function"));
                    piece.calls.push(ToolCallDelta { index, id, kind, function });
                }
                ToolDelta::Arguments { index, text } => {
                    match piece.calls.last_mut().filter(|last| last.index == index) {
                        Some(last) => last.function.arguments.push_str(&text),
                        None => {
                            let function = FunctionCallDelta { name: None, arguments: text };
                            piece.calls.push(ToolCallDelta { index, id: None, kind: None, function });
                        }
                    }
                }
                ToolDelta::End { .. } => {}
            }
        }
    }
}

/// Reads all answers to their end.
///
/// # Errors
/// One of them failed.
pub async fn whole(running: &mut Running, mut parsers: Vec<AnswerParser>) -> Result<Vec<Whole>, ApiError> {
    let mut wholes: Vec<Whole> = parsers.iter().map(|_| Whole::default()).collect();
    while let Some(update) = running.next().await {
        let (index, update) = update?;
        if let (Some(parser), Some(whole)) = (parsers.get_mut(index), wholes.get_mut(index)) {
            whole.add(parser.piece(update));
        }
    }
    Ok(wholes)
}
