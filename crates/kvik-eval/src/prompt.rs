//! Prompts, to the exact token.
//!
//! A test of a cache of 512 tokens needs prompts whose length is known, and a needle that is not cut in half. So prompts
//! are laid out in tokens, not in text: each piece is tokenised on its own, and the pieces are put one after the other.
//! Where the model was trained to chat, the pieces that its chat template puts around messages are found by writing out a
//! conversation of marks and cutting the text at the marks.

use kvik_model::{ChatTemplate, Message, Tokenizer, tokenizer::EncodeOptions};

use crate::EvalError;

/// A mark that no chat template contains and none rewrites.
const MARKS: [&str; 3] = ["QZKVIKFIRSTQZ", "QZKVIKSECONDQZ", "QZKVIKTHIRDQZ"];

/// How a prompt is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As plain text that the model continues.
    Plain,
    /// As a conversation, where the model has a chat template; else as plain text.
    Chat,
}

/// What a chat template writes around messages, in tokens.
#[derive(Clone, Debug)]
struct ChatPieces {
    /// Before the first message of the user.
    opening: Vec<u32>,
    /// After a message of the user, up to where the assistant speaks.
    ask: Vec<u32>,
    /// After a message of the assistant, up to where the user speaks.
    next: Vec<u32>,
}

/// Writes prompts for one model.
pub struct Prompter<'a> {
    tokenizer: &'a Tokenizer,
    chat: Option<ChatPieces>,
    pad: u32,
}

impl<'a> Prompter<'a> {
    /// A writer for a model with `tokenizer` and perhaps a chat template.
    ///
    /// # Errors
    /// The template fails or changes messages, or the tokenizer cannot write a line break.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&ChatTemplate>) -> Result<Self, EvalError> {
        let chat = template.map(|template| ChatPieces::cut(tokenizer, template)).transpose()?;
        let plain = |text| tokenizer.encode(text, EncodeOptions::default());
        let pad = match plain("\n")?[..] {
            [newline] => newline,
            _ => *plain(" .")?.last().ok_or(EvalError::ChatTemplateRewrites)?,
        };
        Ok(Self { tokenizer, chat, pad })
    }

    /// The tokens of `text` alone.
    ///
    /// # Errors
    /// From a tokenizer that cannot express it.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.tokenizer.encode(text, EncodeOptions::default())?)
    }

    /// The text of `ids`, control tokens left out.
    pub fn read(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false)
    }

    /// True if the model ends its answer with `id`.
    pub fn ends_answer(&self, id: u32) -> bool {
        self.tokenizer.is_end_of_generation(id)
    }

    /// True if `id` ends a line.
    pub fn ends_line(&self, id: u32) -> bool {
        self.tokenizer.token_bytes(id).contains(&b'\n')
    }

    /// What stands before the first words of the user.
    pub fn opening(&self, style: Style) -> Vec<u32> {
        match (style, &self.chat) {
            (Style::Chat, Some(chat)) => chat.opening.clone(),
            _ => self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos()).into_iter().collect(),
        }
    }

    /// What stands between the user's words and the model's: in plain text a line break.
    ///
    /// # Errors
    /// From a tokenizer that cannot express it.
    pub fn ask(&self, style: Style) -> Result<Vec<u32>, EvalError> {
        match (style, &self.chat) {
            (Style::Chat, Some(chat)) => Ok(chat.ask.clone()),
            _ => self.text("\n"),
        }
    }

    /// What stands between the model's words and the user's next ones: in plain text an empty line.
    ///
    /// # Errors
    /// From a tokenizer that cannot express it.
    pub fn next(&self, style: Style) -> Result<Vec<u32>, EvalError> {
        match (style, &self.chat) {
            (Style::Chat, Some(chat)) => Ok(chat.next.clone()),
            _ => self.text("\n\n"),
        }
    }

    /// `tokens` tokens that say nothing: empty lines.
    pub fn padding(&self, tokens: usize) -> Vec<u32> {
        vec![self.pad; tokens]
    }
}

impl ChatPieces {
    fn cut(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Self, EvalError> {
        let roles = [
            ("bos_token", tokenizer.bos()),
            ("eos_token", tokenizer.eos()),
            ("unk_token", tokenizer.unknown()),
            ("pad_token", tokenizer.padding()),
        ];
        let variables = roles
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_owned(), tokenizer.token_text(id?).into())));
        let messages = [
            Message::new("user", MARKS[0]),
            Message::new("assistant", MARKS[1]),
            Message::new("user", MARKS[2]),
        ];
        let written = template.render(&messages, true, &variables.collect())?;
        let mut rest = written.as_str();
        let mut until = |mark: &str| {
            let (before, after) = rest.split_once(mark).ok_or(EvalError::ChatTemplateRewrites)?;
            rest = after;
            Ok::<_, EvalError>(before)
        };
        let (opening, _, next) = (until(MARKS[0])?, until(MARKS[1])?, until(MARKS[2])?);
        let special =
            |text| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: true });
        let mut opening = special(opening)?;
        if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && opening.first() != Some(bos))
        {
            opening.insert(0, bos);
        }
        // Behind the last message: the template may write it otherwise than behind an earlier one.
        Ok(Self { opening, ask: special(rest)?, next: special(next)? })
    }
}
