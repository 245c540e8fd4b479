//! Pass keys hidden in a novel, and the questions for them.
//!
//! Haystacks are taken from random places of the novel. Each pass key is a few random words of the spelling alphabet, introduced by
//! its ordinal, at one of a thousand depths between 5 % and 95 % of the haystack. At the end all are asked for and answered, in
//! order; only those tokens count in the loss. (Step 3 of the paper's identification.)

use std::ops::Range;

use kvik_eval::draw::Draw;
use kvik_model::{Tokenizer, tokenizer::EncodeOptions};

use super::Settings;
use crate::TrainError;

/// The spelling alphabet: words without a connection to each other.
const WORDS: [&str; 26] = [
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett", "kilo",
    "lima", "mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor",
    "whiskey", "xray", "yankee", "zulu",
];

/// What pass keys are told apart by.
pub(super) const ORDINALS: [&str; 10] =
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];

/// Depths that a pass key can have.
const DEPTHS: usize = 1000;

/// A text to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The text.
    pub tokens: Vec<u32>,
    /// Its questions and answers: the tokens whose hidden states count.
    pub labels: Range<usize>,
}

/// Makes sequences.
pub struct Passkeys<'a> {
    tokenizer: &'a Tokenizer,
    /// What the tokenizer puts before every text.
    opening: Vec<u32>,
    novel: Vec<u32>,
    settings: Settings,
}

impl<'a> Passkeys<'a> {
    /// Sequences with haystacks from `novel`.
    ///
    /// # Errors
    /// [`TrainError::Tokenizer`] if a text cannot be expressed; [`TrainError::Setting`] if the novel is shorter than a sequence.
    pub fn new(tokenizer: &'a Tokenizer, novel: &str, settings: Settings) -> Result<Self, TrainError> {
        let special = EncodeOptions { add_special: true, parse_special: false };
        let opening = tokenizer.encode("", special)?;
        let novel = tokenizer.encode(novel, EncodeOptions::default())?;
        if novel.len() < settings.max_tokens {
            return Err(TrainError::Setting(format!(
                "the text has {} tokens, fewer than the {} of a sequence",
                novel.len(),
                settings.max_tokens
            )));
        }
        Ok(Self { tokenizer, opening, novel, settings })
    }

    /// The sequence of step `step`: the same one whenever it is asked for.
    ///
    /// # Errors
    /// [`TrainError::TooShort`] if pass keys and questions leave no room for a haystack.
    pub fn sequence(&self, step: usize) -> Result<Sequence, TrainError> {
        let Settings { min_tokens, max_tokens, keys, seed, .. } = self.settings;
        let mut draw = Draw::new(seed, "duo", step as u64);
        let tokens = min_tokens + draw.below(max_tokens - min_tokens + 1);
        let keys = (0..keys).map(|key| self.passkey(key, &mut draw)).collect::<Result<Vec<_>, _>>()?;
        let needed = self.opening.len() + keys.iter().map(Passkey::tokens).sum::<usize>();
        let haystack = tokens.checked_sub(needed).filter(|&tokens| tokens > 0);
        let haystack = haystack.ok_or(TrainError::TooShort { tokens, needed })?;
        let start = draw.below(self.novel.len() - haystack + 1);

        let mut laid = self.opening.clone();
        let mut read = 0;
        let mut by_depth: Vec<&Passkey> = keys.iter().collect();
        by_depth.sort_by(|a, b| a.depth.total_cmp(&b.depth));
        for key in by_depth {
            let place = (key.depth * haystack as f64) as usize;
            laid.extend_from_slice(&self.novel[start + read..start + place]);
            laid.extend_from_slice(&key.introduction);
            read = place;
        }
        laid.extend_from_slice(&self.novel[start + read..start + haystack]);
        let first_label = laid.len();
        keys.iter().for_each(|key| laid.extend_from_slice(&key.question));
        Ok(Sequence { labels: first_label..laid.len(), tokens: laid })
    }

    fn passkey(&self, key: usize, draw: &mut Draw) -> Result<Passkey, TrainError> {
        let words: Vec<&str> = (0..self.settings.words).map(|_| WORDS[draw.below(WORDS.len())]).collect();
        let (ordinal, words) = (ORDINALS[key], words.join(" "));
        let encode = |text: String| self.tokenizer.encode(&text, EncodeOptions::default());
        Ok(Passkey {
            introduction: encode(format!("\nRemember the {ordinal} pass key: {words}.\n"))?,
            question: encode(format!("\nWhat was the {ordinal} pass key? It was: {words}."))?,
            depth: 0.05 + 0.9 * draw.below(DEPTHS) as f64 / (DEPTHS - 1) as f64,
        })
    }
}

/// A pass key.
struct Passkey {
    introduction: Vec<u32>,
    /// With its answer.
    question: Vec<u32>,
    /// Where in the haystack, from 0 (start) to 1 (end).
    depth: f64,
}

impl Passkey {
    fn tokens(&self) -> usize {
        self.introduction.len() + self.question.len()
    }
}
