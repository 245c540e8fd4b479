//! One item of a task: what the model reads, and what it is then asked or led through.

/// One item.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name, unique in its task: what it was made of.
    pub id: String,
    /// The length asked for, in tokens: the context and the first question, or the context alone when nothing is asked.
    pub length: usize,
    /// Where the needle lies, from 0 (start) to 1 (end), if there is one.
    pub depth: Option<f64>,
    /// What is read first.
    pub context: Vec<u32>,
    /// What follows.
    pub job: Job,
}

/// What follows the context.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// Questions, answered greedily.
    Answer {
        /// How the questions hang together.
        mode: Mode,
        /// The questions, at least one.
        turns: Vec<Turn>,
    },
    /// A given text, token by token.
    Force(Forced),
}

/// How the questions about one context hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One conversation: each question follows the reference answers of those before it (SCBench's golden context). What
    /// the model itself says is decoded on a temporary overlay of the cache and dropped.
    MultiTurn,
    /// Each question starts from the cache of the context alone, which was made without any question (SCBench's SCDQ).
    MultiRequest,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiTurn => "multi-turn",
            Self::MultiRequest => "multi-request",
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// What kind of question it is, within the task.
    pub family: &'static str,
    /// The question, up to where the model speaks.
    pub question: Vec<u32>,
    /// The reference answer and what stands before the next question.
    pub reply: Vec<u32>,
    /// What a right answer is.
    pub references: Vec<String>,
    /// How answers are marked.
    pub scorer: crate::scoring::Scorer,
    /// Tokens that the model may say.
    pub max_tokens: usize,
    /// The answer ends with its first line.
    pub one_line: bool,
    /// An answer drawn at random from what an answer could be: the level of chance.
    pub guess: String,
}

/// A text that the model is led through.
#[derive(Clone, Debug, PartialEq)]
pub struct Forced {
    /// What kind of text it is, within the task.
    pub family: &'static str,
    /// The text.
    pub continuation: Vec<u32>,
    /// The parts that count.
    pub spans: Vec<Span>,
}

/// A part of a continuation that counts: right when the model would have said every token of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first token, as an index into the continuation.
    pub start: usize,
    /// How many tokens.
    pub tokens: usize,
    /// As many tokens, drawn at random from what could stand there; empty where chance is not a useful level.
    pub guess: Vec<u32>,
}

impl Item {
    /// Tokens of the longest sequence that the item needs, answers included.
    pub fn longest_tokens(&self) -> usize {
        self.context.len()
            + match &self.job {
                Job::Force(forced) => forced.continuation.len(),
                Job::Answer { mode: Mode::MultiRequest, turns } => {
                    turns.iter().map(|turn| turn.question.len() + turn.max_tokens).max().unwrap_or(0)
                }
                Job::Answer { mode: Mode::MultiTurn, turns } => {
                    let mut said = 0;
                    let mut longest = 0;
                    for turn in turns {
                        said += turn.question.len();
                        longest = longest.max(said + turn.max_tokens);
                        said += turn.reply.len();
                    }
                    longest
                }
            }
    }

    /// A number that differs when anything that the model reads differs (FNV-1a, 64 bits).
    pub fn fingerprint(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325;
        let mut feed = |ids: &[u32]| {
            for &value in ids.iter().chain([&u32::MAX]) {
                for byte in value.to_le_bytes() {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        };
        feed(&self.context);
        match &self.job {
            Job::Force(forced) => {
                feed(&forced.continuation);
                forced.spans.iter().for_each(|span| feed(&[span.start as u32, span.tokens as u32]));
            }
            Job::Answer { mode, turns } => {
                feed(&[u32::from(*mode == Mode::MultiTurn)]);
                for turn in turns {
                    feed(&turn.question);
                    feed(&turn.reply);
                    feed(&[turn.max_tokens as u32]);
                }
            }
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(question: usize, reply: usize, max_tokens: usize) -> Turn {
        Turn {
            family: "x",
            question: vec![1; question],
            reply: vec![2; reply],
            references: vec![],
            scorer: crate::scoring::Scorer::Contains,
            max_tokens,
            one_line: false,
            guess: String::new(),
        }
    }

    #[test]
    fn the_longest_sequence_counts_overlays_once() {
        let item = |mode| Item {
            id: "a".into(),
            length: 10,
            depth: None,
            context: vec![0; 10],
            job: Job::Answer { mode, turns: vec![turn(3, 2, 50), turn(4, 2, 5)] },
        };
        assert_eq!(item(Mode::MultiRequest).longest_tokens(), 10 + 3 + 50);
        assert_eq!(item(Mode::MultiTurn).longest_tokens(), 10 + 3 + 50);
        let mut long = item(Mode::MultiTurn);
        if let Job::Answer { turns, .. } = &mut long.job {
            turns[0].max_tokens = 1;
        }
        assert_eq!(long.longest_tokens(), 10 + 3 + 2 + 4 + 5);
        assert_ne!(item(Mode::MultiTurn).fingerprint(), item(Mode::MultiRequest).fingerprint());
        assert_ne!(item(Mode::MultiTurn).fingerprint(), long.fingerprint());
    }
}
