//! Questions, answered greedily.

use super::{Attempt, EvalError, Mode, QuestionPlace, Subject, Turn, most_likely};
use crate::journal::Mark;

impl<S: Subject> Attempt<'_, S> {
    /// Reads `context` and answers `turns`.
    pub(super) fn answer(
        &mut self,
        context: &[u32],
        mode: Mode,
        turns: &[Turn],
        place: QuestionPlace,
    ) -> Result<(), EvalError> {
        let Some((first, later)) = turns.split_first() else { return Ok(()) };
        if mode == Mode::MultiRequest {
            let shared = self.prefill(context)?;
            for (index, turn) in turns.iter().enumerate() {
                let mut overlay = self.subject.fork(&shared)?;
                self.append(&mut overlay, &turn.question)?;
                self.ask(overlay, turn, index)?;
            }
            return Ok(());
        }
        let mut sequence = match place {
            QuestionPlace::WithContext => self.prefill(&[context, &first.question].concat())?,
            QuestionPlace::After => {
                let mut sequence = self.prefill(context)?;
                self.append(&mut sequence, &first.question)?;
                sequence
            }
        };
        let mut asked = first;
        for (index, turn) in later.iter().enumerate() {
            let overlay = self.subject.fork(&sequence)?;
            self.ask(overlay, asked, index)?;
            self.append(&mut sequence, &[&asked.reply[..], &turn.question].concat())?;
            asked = turn;
        }
        self.ask(sequence, asked, later.len())
    }

    /// Lets `sequence`, which ends with the question of `turn`, be continued, and marks what is said.
    fn ask(&mut self, mut sequence: S::Sequence, turn: &Turn, index: usize) -> Result<(), EvalError> {
        let prompter = &self.kit.prompter;
        let mut said: Vec<u32> = Vec::new();
        loop {
            let next = most_likely(self.subject.logits(&sequence)).ok_or_else(|| self.no_finite_logit())?;
            if prompter.ends_answer(next) {
                break;
            }
            said.push(next);
            let line_ends =
                turn.one_line && prompter.ends_line(next) && prompter.read(&said).trim_start().contains('\n');
            if said.len() >= turn.max_tokens || line_ends {
                break;
            }
            self.decode(&mut sequence, next)?;
        }
        let text = prompter.read(&said);
        self.outcome.marks.push(Mark {
            family: turn.family.to_owned(),
            turn: index,
            sum: turn.scorer.score(&text, &turn.references),
            weight: 1.0,
            chance: Some(turn.scorer.score(&turn.guess, &turn.references)),
            text: Some(text),
        });
        self.outcome.usage.kv_bytes_end =
            self.outcome.usage.kv_bytes_end.max(self.subject.kv_bytes(&sequence));
        Ok(())
    }
}
