//! The commands inside a chat: words that begin with a slash.

use std::path::PathBuf;

use kvik::models::closest;

/// A command inside a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slash {
    Help,
    Clear,
    System(String),
    Regenerate,
    Save(PathBuf),
    Statistics,
    Exit,
}

/// Each command's word, its argument, and what it does.
pub const COMMANDS: [(&str, &str, &str); 7] = [
    ("/help", "", "show this"),
    ("/clear", "", "forget the conversation"),
    ("/system", "TEXT", "set the system message; without a text, remove it"),
    ("/regen", "", "answer the last question again"),
    ("/save", "FILE", "write the conversation to a file"),
    ("/stats", "", "show what the last answer cost"),
    ("/exit", "", "leave, as Ctrl-D does"),
];

impl Slash {
    /// Reads a command; `None` for text that is none, an explanation for one that does not exist or lacks something.
    pub fn parse(text: &str) -> Option<Result<Slash, String>> {
        let (word, argument) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        // A path, such as /etc/hosts, is something to talk about.
        if !word.starts_with('/') || word.len() == 1 || word[1..].contains('/') {
            return None;
        }
        let argument = argument.trim();
        Some(match word {
            "/help" => Ok(Slash::Help),
            "/clear" => Ok(Slash::Clear),
            "/system" => Ok(Slash::System(argument.to_owned())),
            "/regen" => Ok(Slash::Regenerate),
            "/save" if argument.is_empty() => Err("/save needs the name of a file: /save chat.md".to_owned()),
            "/save" => Ok(Slash::Save(argument.into())),
            "/stats" => Ok(Slash::Statistics),
            "/exit" | "/quit" => Ok(Slash::Exit),
            unknown => {
                let similar = closest(unknown, COMMANDS.iter().map(|(word, ..)| *word));
                let hint = similar.first().map(|word| format!(" (did you mean {word}?)"));
                Err(format!("there is no {unknown}{}; /help lists what there is", hint.unwrap_or_default()))
            }
        })
    }
}

/// What /help shows.
pub fn help() -> String {
    let commands = COMMANDS
        .iter()
        .map(|(word, argument, what)| format!("  {:15} {what}\n", format!("{word} {argument}")));
    let keys = [
        ("\\ at the end", "go on in the next line"),
        ("\"\"\"", "begin and end a text of several lines"),
        ("Ctrl-C", "stop the answer; at the prompt, clear the line; twice, leave"),
        ("Up, Ctrl-R", "earlier lines, search in them"),
        ("Tab", "complete a command"),
    ];
    let keys = keys.iter().map(|(key, what)| format!("  {key:15} {what}\n"));
    commands.chain(keys).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_text() {
        assert_eq!(Slash::parse("/system  Be brief. "), Some(Ok(Slash::System("Be brief.".into()))));
        assert_eq!(Slash::parse("/save a b.md"), Some(Ok(Slash::Save("a b.md".into()))));
        assert_eq!(Slash::parse("hello /help"), None);
        assert_eq!(Slash::parse("/etc/hosts is what?"), None);
        assert_eq!(Slash::parse("/ is a slash"), None);
        assert!(Slash::parse("/save").unwrap().unwrap_err().contains("needs the name of a file"));
        assert!(Slash::parse("/claer").unwrap().unwrap_err().contains("did you mean /clear?"));
    }

    #[test]
    fn every_listed_command_exists() {
        for (word, argument, _) in COMMANDS {
            assert!(Slash::parse(&format!("{word} {argument}")).unwrap().is_ok(), "{word}");
            assert!(help().contains(word));
        }
    }
}
