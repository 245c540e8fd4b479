//! The tokens of a model: their texts, kinds and scores.

use super::string_table::{Duplicates, StringTable};

/// What a token is for; GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Of no declared kind: stands for no text.
    Undefined = 0,
    /// Ordinary text.
    Normal = 1,
    /// Stands for text that no token spells.
    Unknown = 2,
    /// Steers the model: begin of text, end of turn. Recognised in text only on request.
    Control = 3,
    /// Text that is always one token.
    UserDefined = 4,
    /// Reserved: stands for no text.
    Unused = 5,
    /// A single byte.
    Byte = 6,
}

impl TokenKind {
    /// The kind of GGUF's number; [`TokenKind::Undefined`] for a number that GGUF does not define.
    pub(super) fn from_gguf(number: i32) -> Self {
        match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Undefined,
        }
    }

    /// Whether the token is a mark for the model rather than text for the reader.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }
}

/// All tokens of a model, by number and by text.
pub(super) struct Vocabulary {
    texts: StringTable,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// One token per text and kind. `None` if there are more than 2³² of them.
    pub(super) fn new(texts: &[&str], kinds: Vec<TokenKind>) -> Option<Self> {
        let texts = StringTable::new(texts.iter().map(|text| text.as_bytes()), Duplicates::Last)?;
        Some(Self { texts, kinds })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// The token of this text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.texts.get(text.as_bytes())
    }

    /// The text of a token as the file spells it; empty if there is no such token.
    pub(super) fn text(&self, id: u32) -> &str {
        // Built from texts, so it is one.
        std::str::from_utf8(self.texts.string(id)).unwrap_or_default()
    }

    /// Says what a token is for; nothing happens if there is no such token.
    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(entry) = self.kinds.get_mut(id as usize) {
            *entry = kind;
        }
    }

    /// The tokens of these kinds, with their texts.
    pub(super) fn of_kinds(
        &self,
        kinds: &'static [TokenKind],
    ) -> impl Iterator<Item = (u32, TokenKind, &str)> {
        let all = self.kinds.iter().enumerate().filter(|(_, kind)| kinds.contains(kind));
        all.map(|(id, &kind)| (id as u32, kind, self.text(id as u32)))
    }

    /// What a token is for; undefined if there is no such token.
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Undefined)
    }
}
