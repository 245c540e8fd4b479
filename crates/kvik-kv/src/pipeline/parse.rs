//! Reads `name(key=value,…)+name(…)`.

use super::{Arguments, Stage, registry};

/// Why a text is not a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}\n  {text}\n  {caret}", caret = caret(text, *at))]
pub struct PipelineError {
    /// What is wrong and what would be right.
    pub message: String,
    /// The pipeline.
    pub text: String,
    /// The character that is wrong, counted from 0.
    pub at: usize,
}

fn caret(text: &str, at: usize) -> String {
    let spaces: String = text.chars().take(at).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    format!("{spaces}^")
}

/// Characters that end a name or a value.
const MARKS: [char; 5] = ['(', ')', ',', '=', '+'];

struct Reader<'a> {
    text: &'a str,
    /// Byte index of what comes next.
    at: usize,
}

pub(super) fn pipeline(text: &str) -> Result<Vec<Stage>, PipelineError> {
    let mut reader = Reader { text, at: 0 };
    let mut stages: Vec<(usize, Stage)> = Vec::new();
    if ["", "full", "none"].contains(&text.trim()) {
        return Ok(Vec::new());
    }
    loop {
        let start = reader.skip_spaces();
        let stage = reader.stage()?;
        for (_, earlier) in &stages {
            if let Some(reason) = registry::conflict(earlier.method, stage.method) {
                return Err(reader.error(start, reason));
            }
        }
        stages.push((start, stage));
        match reader.mark() {
            None => break,
            Some('+') => {}
            Some(found) => {
                let message = format!("expected '+' and another method, or the end, not '{found}'");
                return Err(reader.error(reader.at - found.len_utf8(), message));
            }
        }
    }
    Ok(stages.into_iter().map(|(_, stage)| stage).collect())
}

impl<'a> Reader<'a> {
    fn stage(&mut self) -> Result<Stage, PipelineError> {
        let start = self.at;
        let name = self.word(&MARKS);
        if name.is_empty() {
            return Err(self.error(start, format!("expected a method; there are {}", registry::names())));
        }
        let Some(method) = registry::find(name) else {
            return Err(self.error(start, registry::unknown(name)));
        };
        let mut arguments = Arguments::defaults(method.parameters);
        if self.peek() == Some('(') {
            self.at += 1;
            self.arguments(&mut arguments)?;
        }
        let stage = Stage { method, arguments };
        if let Some(reason) = (method.check)(&stage.arguments) {
            return Err(self.error(start, reason));
        }
        Ok(stage)
    }

    /// What stands between the brackets.
    fn arguments(&mut self, arguments: &mut Arguments) -> Result<(), PipelineError> {
        self.skip_spaces();
        if self.peek() == Some(')') {
            self.at += 1;
            return Ok(());
        }
        loop {
            let name_at = self.skip_spaces();
            let name = self.word(&MARKS).to_owned();
            if name.is_empty() {
                return Err(self.error(name_at, "expected a parameter, as in (budget=512)".into()));
            }
            match self.mark() {
                Some('=') => {}
                found => {
                    let at = self.at - found.map_or(0, char::len_utf8);
                    return Err(self.error(at, format!("expected '=' and a value after '{name}'")));
                }
            }
            let value_at = self.skip_spaces();
            // Paths may hold anything else.
            let value = self.word(&[',', ')']).to_owned();
            arguments.set(&name, &value).map_err(|message| {
                let unknown = message.starts_with("there is no parameter") || message.ends_with("twice");
                self.error(if unknown { name_at } else { value_at }, message)
            })?;
            match self.mark() {
                Some(',') => {}
                Some(')') => return Ok(()),
                _ => return Err(self.error(self.text.len(), "expected ')'".into())),
            }
        }
    }

    fn skip_spaces(&mut self) -> usize {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.at
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// Everything up to one of `ends`, without the spaces around it.
    fn word(&mut self, ends: &[char]) -> &'a str {
        let rest = &self.text[self.at..];
        let word = &rest[..rest.find(ends).unwrap_or(rest.len())];
        self.at += word.len();
        word.trim()
    }

    /// The next character.
    fn mark(&mut self) -> Option<char> {
        self.skip_spaces();
        let found = self.peek()?;
        self.at += found.len_utf8();
        Some(found)
    }

    fn error(&self, at: usize, message: String) -> PipelineError {
        PipelineError { message, text: self.text.to_owned(), at: self.text[..at].chars().count() }
    }
}

#[cfg(test)]
mod tests {
    use crate::Pipeline;

    fn refused(text: &str) -> (usize, String) {
        let error = Pipeline::parse(text).unwrap_err();
        (error.at, error.message)
    }

    #[test]
    fn what_is_written_comes_back_without_defaults() {
        for (text, canonical) in [
            ("", "full"),
            (" full ", "full"),
            ("snapkv", "snapkv"),
            ("snapkv()", "snapkv"),
            (" snapkv ( budget = 100 , window=32 ) ", "snapkv(budget=100)"),
            ("streaming(sinks=2)", "streaming(sinks=2)"),
        ] {
            let pipeline = Pipeline::parse(text).unwrap();
            assert_eq!(pipeline.to_string(), canonical, "{text}");
            assert_eq!(Pipeline::parse(canonical).unwrap(), pipeline);
        }
    }

    #[test]
    fn errors_point_at_the_character() {
        assert_eq!(refused("snapkw").0, 0);
        assert!(refused("snapkw").1.contains("snapkv"), "the nearest name is offered");
        assert_eq!(refused("snapkv+").0, 7);
        assert_eq!(refused("snapkv(budget)").0, 13);
        assert_eq!(refused("snapkv(budget=many)").0, 14);
        assert_eq!(refused("snapkv(bugdet=1)").0, 7);
        assert_eq!(refused("snapkv(budget=100,budget=200)").0, 18);
        assert_eq!(refused("snapkv(budget=100").0, 17);
        assert_eq!(refused("snapkv(budget=100)x").0, 18);
        assert_eq!(refused("snapkv + snapkv").0, 9);
        assert_eq!(refused("é").0, 0);
        let shown = Pipeline::parse("snapkv(budget=many)").unwrap_err().to_string();
        assert!(shown.ends_with("\n                ^"), "{shown}");
    }

    #[test]
    fn stages_that_contradict_each_other_are_refused_with_the_reason() {
        let (at, message) = refused("snapkv+streaming");
        assert_eq!(at, 7);
        assert!(message.contains("which tokens"), "{message}");
        let (_, message) = refused("snapkv(budget=10,window=32)");
        assert!(message.contains("budget"), "{message}");
    }
}
