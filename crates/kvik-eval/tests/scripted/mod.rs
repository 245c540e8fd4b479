//! A subject that continues by induction, and a variant of it that remembers the end of the prompt only.

use kvik_eval::{
    EvalError,
    subject::{FULL, Subject},
    tasks::next_by_induction,
};

/// Bytes that a token is said to take.
const BYTES_PER_TOKEN: usize = 8;
/// The logit of the token that would follow; all others have 0.
const SURE: f32 = 12.0;

pub struct Inductive {
    variants: Vec<String>,
    vocabulary: usize,
    window: usize,
    /// Everything that was fed to each sequence of the full variant: prompts first, forks where they were made.
    fed: Vec<(bool, Vec<u32>)>,
}

pub struct Sequence {
    /// Where it stands in the list of what was fed, if it is of the full variant.
    record: Option<usize>,
    remembered: Vec<u32>,
    logits: Vec<f32>,
}

impl Inductive {
    pub fn new(vocabulary: usize, window: usize) -> Self {
        let variants = vec![FULL.to_owned(), format!("forget(window={window})")];
        Self { variants, vocabulary, window, fed: Vec::new() }
    }

    /// What each prompt was, under any variant.
    pub fn prompts(&self) -> Vec<&[u32]> {
        self.fed.iter().filter(|(prompt, _)| *prompt).map(|(_, fed)| &fed[..]).collect()
    }

    /// For each prompt of the full variant what it and its forks came to.
    pub fn longest_of_each_prompt(&self) -> Vec<Vec<&[u32]>> {
        let mut groups: Vec<Vec<&[u32]>> = Vec::new();
        for (prompt, fed) in &self.fed {
            if *prompt {
                groups.push(Vec::new());
            }
            if let Some(group) = groups.last_mut() {
                group.push(fed);
            }
        }
        // Variants take turns, the full one first.
        groups.into_iter().step_by(2).collect()
    }

    fn feed(&mut self, sequence: &mut Sequence, tokens: &[u32]) {
        sequence.remembered.extend_from_slice(tokens);
        if let Some(record) = sequence.record {
            self.fed[record].1.extend_from_slice(tokens);
        }
        sequence.logits = vec![0.0; self.vocabulary];
        if let Some(next) = next_by_induction(&sequence.remembered) {
            sequence.logits[next as usize] = SURE;
        }
    }
}

impl Subject for Inductive {
    type Sequence = Sequence;

    fn variants(&self) -> &[String] {
        &self.variants
    }

    fn context_tokens(&self) -> usize {
        8192
    }

    fn prefill(&mut self, variant: usize, tokens: &[u32]) -> Result<Sequence, EvalError> {
        self.fed.push((true, Vec::new()));
        let record = Some(self.fed.len() - 1);
        let mut sequence = Sequence { record, remembered: Vec::new(), logits: Vec::new() };
        self.feed(&mut sequence, tokens);
        if variant == 1 {
            let forgotten = sequence.remembered.len().saturating_sub(self.window);
            sequence.remembered.drain(..forgotten);
        }
        Ok(sequence)
    }

    fn append(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Result<(), EvalError> {
        self.feed(sequence, tokens);
        Ok(())
    }

    fn fork(&mut self, sequence: &Sequence) -> Result<Sequence, EvalError> {
        let record = sequence.record.map(|record| {
            let copy = self.fed[record].1.clone();
            self.fed.push((false, copy));
            self.fed.len() - 1
        });
        Ok(Sequence { record, remembered: sequence.remembered.clone(), logits: sequence.logits.clone() })
    }

    fn decode(&mut self, sequence: &mut Sequence, token: u32) -> Result<(), EvalError> {
        self.feed(sequence, &[token]);
        Ok(())
    }

    fn logits<'a>(&self, sequence: &'a Sequence) -> &'a [f32] {
        &sequence.logits
    }

    fn kv_bytes(&self, sequence: &Sequence) -> usize {
        BYTES_PER_TOKEN * sequence.remembered.len()
    }
}
