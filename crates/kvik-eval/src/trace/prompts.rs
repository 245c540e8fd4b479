//! Prompts for requests whose texts nobody knows: as long as the trace says, and the same where it says so.
//!
//! A prompt is a row of short runs of a real text, each run chosen at random by (seed, what it is part of, place), so that
//! it reads like text to a tokenizer and a model, no two blocks are alike by accident, and blocks of one name are alike
//! always. Turns of one conversation begin with what the turn before began with. The text comes as tokens, where the
//! server lends its tokenizer, and then lengths are exact; or as words, and then they are right on average.

use super::{Trace, TraceRequest};
use crate::draw::Draw;

/// Tokens or words of a run.
const RUN: usize = 16;

/// A prompt as a server takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Text.
    Text(String),
}

/// What prompts are made of.
#[derive(Clone, Debug)]
pub enum Material {
    /// The tokens of a text.
    Tokens(Vec<u32>),
    /// Its words, and how many tokens one has on average, with the space before it.
    Words {
        /// The words.
        words: Vec<String>,
        /// Tokens per word.
        tokens_per_word: f64,
    },
}

impl Material {
    /// The words of `text`.
    pub fn words(text: &str, tokens_per_word: f64) -> Self {
        Self::Words { words: text.split_whitespace().map(str::to_owned).collect(), tokens_per_word }
    }

    fn pieces(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.len(),
            Self::Words { words, .. } => words.len(),
        }
    }
}

/// A part of a prompt: so many tokens of what a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// What kind of thing the name names: equal names of different kinds are different.
    pub kind: &'static str,
    /// Its name.
    pub name: u64,
    /// Tokens from its beginning.
    pub tokens: usize,
}

/// Writes prompts.
#[derive(Clone, Debug)]
pub struct PromptWriter {
    material: Material,
    seed: u64,
}

impl PromptWriter {
    /// A writer over `material`, which must not be empty: an empty one writes empty prompts.
    pub fn new(material: Material, seed: u64) -> Self {
        Self { material, seed }
    }

    /// The prompt of `parts`, one behind the other.
    pub fn write(&self, parts: &[Part]) -> Prompt {
        let pieces = self.material.pieces();
        // Where runs start; a run that would leave the material's end goes on at its beginning.
        let places = parts.iter().flat_map(|part| {
            let wanted = match &self.material {
                Material::Tokens(_) => part.tokens,
                Material::Words { tokens_per_word, .. } => ((part.tokens as f64 / tokens_per_word).round()
                    as usize)
                    .max(usize::from(part.tokens > 0)),
            };
            let mut draw = Draw::new(self.seed, part.kind, part.name);
            let runs =
                (0..wanted.div_ceil(RUN)).map(move |run| (draw.below(pieces), RUN.min(wanted - run * RUN)));
            runs.flat_map(move |(start, length)| (start..start + length).map(move |at| at % pieces.max(1)))
        });
        match &self.material {
            Material::Tokens(tokens) => {
                Prompt::Tokens(places.filter_map(|at| tokens.get(at).copied()).collect())
            }
            Material::Words { words, .. } => {
                let words: Vec<&str> = places.filter_map(|at| words.get(at).map(String::as_str)).collect();
                Prompt::Text(words.join(" "))
            }
        }
    }

    /// The prompt of the `index`-th request of `trace`.
    pub fn of(&self, trace: &Trace, index: usize) -> Prompt {
        self.write(&parts(&trace.requests[index], index, trace.block_tokens))
    }
}

/// What the prompt of a request is made of: its blocks, as far as it has them, then what is its conversation's or its own.
fn parts(request: &TraceRequest, index: usize, block_tokens: usize) -> Vec<Part> {
    let mut left = request.input_tokens as usize;
    let mut parts = Vec::with_capacity(request.blocks.len() + 1);
    for &name in &request.blocks {
        let tokens = left.min(block_tokens);
        parts.push(Part { kind: "block", name, tokens });
        left -= tokens;
    }
    let (kind, name) = match (request.blocks.is_empty(), request.session) {
        (true, Some(session)) => ("session", session),
        _ => ("request", index as u64),
    };
    parts.push(Part { kind, name, tokens: left });
    parts.retain(|part| part.tokens > 0);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Class;

    fn tokens(prompt: Prompt) -> Vec<u32> {
        let Prompt::Tokens(tokens) = prompt else { panic!("tokens") };
        tokens
    }

    fn writer(seed: u64) -> PromptWriter {
        PromptWriter::new(Material::Tokens((1000..9000).collect()), seed)
    }

    fn common(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    #[test]
    fn prompts_share_exactly_what_the_trace_says() {
        let request = |at: f64, tokens, blocks: &[u64], session| TraceRequest {
            blocks: blocks.into(),
            session,
            ..TraceRequest::plain(at, tokens, 1)
        };
        let requests = vec![
            request(0.0, 250, &[1, 2, 3], None),
            request(1.0, 330, &[1, 2, 7, 8], None),
            request(2.0, 100, &[], Some(5)),
            request(3.0, 180, &[], Some(5)),
            request(4.0, 180, &[], None),
        ];
        let trace = Trace::new(requests, vec![Class::default()], 100, "x".into());
        let prompts: Vec<_> = (0..5).map(|index| tokens(writer(1).of(&trace, index))).collect();
        assert_eq!(prompts.iter().map(Vec::len).collect::<Vec<_>>(), [250, 330, 100, 180, 180]);
        assert_eq!(common(&prompts[0], &prompts[1]), 200);
        assert_eq!(common(&prompts[2], &prompts[3]), 100);
        assert!(common(&prompts[3], &prompts[4]) < 2 && common(&prompts[0], &prompts[2]) < 2);
        assert_eq!(tokens(writer(1).of(&trace, 1)), prompts[1]);
        assert!(common(&tokens(writer(2).of(&trace, 1)), &prompts[1]) < 2);
    }

    #[test]
    fn words_come_in_the_number_that_makes_the_tokens() {
        let writer = PromptWriter::new(Material::words("one two three four five", 2.0), 1);
        let Prompt::Text(text) = writer.write(&[Part { kind: "x", name: 1, tokens: 100 }]) else {
            panic!("text")
        };
        assert_eq!(text.split(' ').count(), 50);
        let empty = PromptWriter::new(Material::Tokens(Vec::new()), 1);
        assert_eq!(empty.write(&[Part { kind: "x", name: 1, tokens: 3 }]), Prompt::Tokens(Vec::new()));
    }
}
