//! What was said in a chat, and how it becomes tokens.

use kvik_model::{ChatTemplate, Message, Tokenizer};

/// A system message and the turns since the beginning, as far as they are remembered.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Turn>,
}

#[derive(Clone, Debug)]
struct Turn {
    question: String,
    answer: Option<String>,
}

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(system: Option<String>) -> Conversation {
        Conversation { system, turns: Vec::new() }
    }

    /// The user says something.
    pub fn ask(&mut self, question: &str) {
        self.turns.push(Turn { question: question.to_owned(), answer: None });
    }

    /// The model has answered the last question.
    pub fn answer(&mut self, answer: String) {
        if let Some(turn) = self.turns.last_mut() {
            turn.answer = Some(answer);
        }
    }

    /// What the user said last.
    pub fn last_question(&self) -> Option<&str> {
        self.turns.last().map(|turn| turn.question.as_str())
    }

    /// Takes the last answer back; says whether there is a question to answer again.
    pub fn retract_answer(&mut self) -> bool {
        self.turns.last_mut().map(|turn| turn.answer = None).is_some()
    }

    /// Takes the last question back.
    pub fn retract_question(&mut self) {
        self.turns.pop();
    }

    /// Forgets the oldest turn, never the last; says whether there was one.
    pub fn forget_oldest(&mut self) -> bool {
        let forgets = self.turns.len() > 1;
        if forgets {
            self.turns.remove(0);
        }
        forgets
    }

    /// Begins anew, with the same system message.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// Changes the system message; empty text removes it.
    pub fn set_system(&mut self, text: &str) {
        self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
    }

    /// What the template is given: roles and texts in order.
    fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self.turns.iter().flat_map(|turn| {
            let answer = turn.answer.iter().map(|text| Message::new("assistant", text));
            std::iter::once(Message::new("user", &turn.question)).chain(answer)
        });
        system.chain(turns).collect()
    }

    /// The conversation as a document for people.
    pub fn to_markdown(&self) -> String {
        let system = self.system.iter().map(|text| format!("**System:** {text}\n\n"));
        let turns = self.turns.iter().map(|turn| {
            let answer = turn.answer.as_deref().unwrap_or_default();
            format!("**You:** {}\n\n**Model:** {answer}\n\n", turn.question)
        });
        system.chain(turns).collect()
    }
}

/// The tokens of a conversation whose next words are the model's.
pub fn encode_chat(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> anyhow::Result<Vec<u32>> {
    Ok(template.encode(tokenizer, &conversation.messages(), true)?)
}

#[cfg(test)]
mod tests {
    use super::Conversation;

    #[test]
    fn the_last_question_is_never_forgotten() {
        let mut conversation = Conversation::new(Some("Be brief.".into()));
        conversation.ask("one");
        conversation.answer("1".into());
        conversation.ask("two");
        assert!(conversation.forget_oldest() && !conversation.forget_oldest());
        assert_eq!(conversation.last_question(), Some("two"));
        assert_eq!(conversation.to_markdown(), "**System:** Be brief.\n\n**You:** two\n\n**Model:** \n\n");
    }

    #[test]
    fn an_answer_can_be_asked_for_again() {
        let mut conversation = Conversation::default();
        assert!(!conversation.retract_answer());
        conversation.ask("one");
        conversation.answer("1".into());
        assert!(conversation.retract_answer());
        assert_eq!(conversation.to_markdown(), "**You:** one\n\n**Model:** \n\n");
    }
}
