//! From the text of an answer, as it comes, to deltas of text and calls.
//!
//! In text, what could still become a mark is held back together with the white space before it. Behind a mark, everything
//! is held back until it is certain that a call begins; if it turns out that none does, it was text after all, and nothing
//! is lost. From there on, arguments are passed on as they come. White space around calls is dropped.

use super::{
    ToolDelta,
    call_object::{CallObject, Step},
    format::ToolCallFormat,
};
use kvik_model::Tokenizer;

/// Longer white space is not held back.
const MAX_SPACE_BYTES: usize = 256;
/// Longer names of functions are none.
const MAX_NAME_BYTES: usize = 256;

/// Reads an answer.
#[derive(Clone, Debug)]
pub struct ToolCallParser {
    format: ToolCallFormat,
    /// Names of functions: what an object without marks must name to be a call.
    tools: Vec<String>,
    hidden_marks: Vec<(u32, &'static str)>,
    state: State,
    /// What was read and is not decided.
    held: String,
    /// Calls that have begun.
    calls: usize,
    /// A call ended without the mark that should follow it.
    unclosed: bool,
    deltas: Vec<ToolDelta>,
}

/// Where in an answer.
#[derive(Clone, Debug)]
enum State {
    /// At its beginning, where it may still be a call without marks.
    Beginning,
    /// In text.
    Text,
    /// Where calls stand.
    Calls { bare: bool, list: bool, place: Place },
}

/// Where among calls.
#[derive(Clone, Debug)]
enum Place {
    /// Before the first, or the list of them.
    First,
    /// Before a further one.
    Next,
    /// In a name that stands before its arguments.
    Name(String),
    /// Between name and arguments.
    Arguments(String),
    /// In a call; whether it has been announced.
    Call { object: Box<CallObject>, announced: bool },
    /// In arguments that stand by themselves, at this depth.
    Bare { depth: usize, in_string: bool, escaped: bool },
    /// Behind a call.
    Behind,
    /// Behind the list of calls.
    BehindList,
    /// In the mark that ends the calls, of which so many bytes have come.
    Closing(usize),
}

impl ToolCallParser {
    /// A parser for answers in `format` by a model that may call `tools`.
    pub fn new(format: ToolCallFormat, tools: impl IntoIterator<Item = String>) -> Self {
        Self {
            format,
            tools: tools.into_iter().collect(),
            hidden_marks: Vec::new(),
            state: State::Beginning,
            held: String::new(),
            calls: 0,
            unclosed: false,
            deltas: Vec::new(),
        }
    }

    /// The same for [`push_token`](Self::push_token), with the marks that are control tokens of this model.
    #[must_use]
    pub fn with_tokenizer(mut self, tokenizer: &Tokenizer) -> Self {
        self.hidden_marks = self.format.hidden_marks(tokenizer);
        self
    }

    /// Calls that have begun so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Reads a token with the text that became certain with it. A mark that is a control token has no text and is put in
    /// its place.
    pub fn push_token(&mut self, id: u32, text: &str) -> Vec<ToolDelta> {
        let mark = self.hidden_marks.iter().find(|(token, _)| *token == id);
        if let Some((_, mark)) = mark.copied().filter(|(_, mark)| !text.contains(mark)) {
            mark.chars().for_each(|c| self.read(c));
        }
        self.push(text)
    }

    /// Reads the next piece of the answer and returns what is certain with it.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        text.chars().for_each(|c| self.read(c));
        std::mem::take(&mut self.deltas)
    }

    /// The answer has ended: returns the rest.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Calls { place: Place::Call { mut object, announced: true }, .. } => {
                self.arguments(&object.take_arguments());
                self.end_call(false);
            }
            State::Calls { place: Place::Bare { .. }, .. } => self.end_call(false),
            State::Calls { place: Place::Closing(_), .. } => self.held.clear(),
            _ => {}
        }
        if self.calls > 0 && self.held.trim().is_empty() {
            self.held.clear();
        }
        self.release();
        std::mem::take(&mut self.deltas)
    }

    fn read(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Beginning if self.format.is_bare() && matches!(c, '{' | '[') => {
                self.read_among_calls(c, true, false, Place::First);
            }
            State::Beginning => {
                if c.is_whitespace() && self.held.len() < MAX_SPACE_BYTES {
                    self.held.push(c);
                    self.state = State::Beginning;
                } else {
                    self.read_text(c);
                }
            }
            State::Text => self.read_text(c),
            State::Calls { bare, list, place } => self.read_among_calls(c, bare, list, place),
        }
    }

    /// Reads a character of text; the state is `Text`, and becomes another behind a mark.
    fn read_text(&mut self, c: char) {
        self.held.push(c);
        loop {
            let rest = self.held.trim_start();
            if rest.is_empty() {
                if self.held.len() > MAX_SPACE_BYTES {
                    self.release();
                }
                return;
            }
            if self.format.opening() == Some(rest) {
                self.state = State::Calls { bare: false, list: false, place: Place::First };
                return;
            }
            let closing = self.format.closing().filter(|_| self.unclosed);
            if closing == Some(rest) {
                self.unclosed = false;
                self.held.clear();
                return;
            }
            if self.format.opening().into_iter().chain(closing).any(|mark| mark.starts_with(rest)) {
                return;
            }
            // No mark begins here; one may begin with the next character.
            let first = self.held.len() - rest.len() + rest.chars().next().map_or(0, char::len_utf8);
            let rest = self.held.split_off(first);
            self.release();
            self.held = rest;
        }
    }

    /// Reads a character where calls stand.
    fn read_among_calls(&mut self, c: char, bare: bool, mut list: bool, place: Place) {
        let space = c.is_whitespace();
        let behind = matches!(place, Place::Behind | Place::BehindList | Place::Closing(_));
        let next = match place {
            Place::First if c == '[' => {
                list = true;
                Some(Place::Next)
            }
            Place::First | Place::Next if c == '{' => Some(Place::call(bare)),
            Place::First | Place::Next if space => Some(place),
            Place::Next if list && c == ']' => Some(Place::BehindList),
            Place::First if self.format == ToolCallFormat::MistralArgs && is_of_name(c) => {
                Some(Place::Name(c.into()))
            }
            Place::Name(mut name) if is_of_name(c) && name.len() < MAX_NAME_BYTES => {
                name.push(c);
                Some(Place::Name(name))
            }
            Place::Name(name) | Place::Arguments(name) if c == '{' => {
                self.begin_call(name);
                self.arguments("{");
                Some(Place::Bare { depth: 1, in_string: false, escaped: false })
            }
            Place::Name(name) if c == '[' || space => Some(Place::Arguments(name)),
            // What may stand here: the mark `[ARGS]`, and the call's id before it.
            Place::Arguments(name)
                if (space || is_of_name(c) || matches!(c, '[' | ']')) && self.held.len() < MAX_NAME_BYTES =>
            {
                Some(Place::Arguments(name))
            }
            Place::Call { object, announced } => self.read_call(c, bare, object, announced),
            Place::Bare { depth, in_string, escaped } => {
                Some(self.read_bare_arguments(c, depth, in_string, escaped))
            }
            Place::Behind if list && c == ',' => Some(Place::Next),
            Place::Behind if list && c == ']' => Some(Place::BehindList),
            Place::Behind if !list && matches!(c, ',' | ';') => Some(Place::Next),
            Place::Behind if !list && c == '{' => Some(Place::call(bare)),
            Place::Behind | Place::BehindList if space => Some(place),
            Place::Behind | Place::BehindList => self.read_closing(c, 0),
            Place::Closing(matched) => self.read_closing(c, matched),
            Place::First | Place::Next | Place::Name(_) | Place::Arguments(_) => None,
        };
        match next {
            Some(Place::Closing(matched)) if Some(matched) == self.format.closing().map(str::len) => {
                self.held.clear();
                self.unclosed = false;
                self.state = State::Text;
            }
            Some(place) => {
                // From where a call is announced to its end, nothing has to be given back. Nor has the end of a list, unless it is
                // empty: then its beginning is held.
                let keeps = match place {
                    Place::Bare { .. } | Place::Call { announced: true, .. } | Place::Behind => false,
                    Place::BehindList => !self.held.trim().is_empty(),
                    _ => true,
                };
                if keeps {
                    self.held.push(c);
                } else {
                    self.held.clear();
                }
                self.state = State::Calls { bare, list, place };
            }
            // Behind calls stands no closing mark but text, in which further calls may begin.
            None if behind && !self.held.contains(['[', '{']) => {
                let held = std::mem::take(&mut self.held);
                held.chars().chain([c]).for_each(|c| self.read(c));
            }
            None => {
                self.release();
                self.read_text(c);
            }
        }
    }

    /// Reads a character of a call's object; `None` if this is no call, or no longer one.
    fn read_call(
        &mut self,
        c: char,
        bare: bool,
        mut object: Box<CallObject>,
        mut announced: bool,
    ) -> Option<Place> {
        let step = object.push(c);
        if step == Step::Wrong {
            if announced {
                self.end_call(false);
            }
            return None;
        }
        if let Some(name) = object.name().filter(|_| !announced) {
            if bare && !self.tools.iter().any(|tool| tool == name) {
                return None;
            }
            self.begin_call(name.to_owned());
            announced = true;
        }
        if announced {
            self.arguments(&object.take_arguments());
        }
        if step == Step::Ended {
            self.end_call(true);
            return Some(Place::Behind);
        }
        Some(Place::Call { object, announced })
    }

    /// Reads a character of arguments that stand by themselves.
    fn read_bare_arguments(&mut self, c: char, depth: usize, in_string: bool, escaped: bool) -> Place {
        self.arguments(c.encode_utf8(&mut [0; 4]));
        match c {
            _ if in_string => {
                let closes = c == '"' && !escaped;
                Place::Bare { depth, in_string: !closes, escaped: c == '\\' && !escaped }
            }
            '}' | ']' if depth == 1 => {
                self.end_call(true);
                Place::Behind
            }
            '}' | ']' => Place::Bare { depth: depth - 1, in_string, escaped: false },
            '{' | '[' => Place::Bare { depth: depth + 1, in_string, escaped: false },
            _ => Place::Bare { depth, in_string: c == '"', escaped: false },
        }
    }

    /// Reads a character of the mark that ends calls, of which `matched` bytes have come; `None` if it is another.
    fn read_closing(&self, c: char, matched: usize) -> Option<Place> {
        let fits = self.format.closing()?.get(matched..)?.starts_with(c);
        fits.then_some(Place::Closing(matched + c.len_utf8()))
    }

    fn begin_call(&mut self, name: String) {
        self.deltas.push(ToolDelta::Call { index: self.calls, name });
        self.calls += 1;
        self.unclosed = self.format.closing().is_some();
        self.held.clear();
    }

    /// Passes on more arguments of the last call.
    fn arguments(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        if let Some(ToolDelta::Arguments { text, .. }) = self.deltas.last_mut() {
            text.push_str(more);
        } else {
            self.deltas.push(ToolDelta::Arguments { index: self.calls - 1, text: more.to_owned() });
        }
    }

    fn end_call(&mut self, complete: bool) {
        self.deltas.push(ToolDelta::End { index: self.calls - 1, complete });
    }

    /// What was held is text.
    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        match self.deltas.last_mut() {
            Some(ToolDelta::Text(text)) => text.push_str(&held),
            _ => self.deltas.push(ToolDelta::Text(held)),
        }
    }
}

impl Place {
    /// In a call whose brace was read.
    fn call(bare: bool) -> Self {
        Self::Call { object: Box::new(CallObject::new(bare)), announced: false }
    }
}

/// Whether functions' names are made of it.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}
