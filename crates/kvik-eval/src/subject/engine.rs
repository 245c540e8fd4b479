//! An engine, its cache rewritten by pipelines.

use kvik_engine::{Engine, Session};
use kvik_kv::Pipeline;

use super::Subject;
use crate::EvalError;

/// Sessions that an evaluation holds at once: a shared context, an overlay on it, and one in the making.
pub const SESSIONS: usize = 3;

/// An engine under test.
pub struct EngineSubject<'a> {
    engine: &'a mut Engine,
    pipelines: Vec<Pipeline>,
    variants: Vec<String>,
}

/// A sequence of an engine, with the logits after its last token.
pub struct EngineSequence {
    session: Session,
    logits: Vec<f32>,
}

impl<'a> EngineSubject<'a> {
    /// `engine` with the full cache and then with each of `pipelines`, which are told apart by what they do: one that
    /// stands there before is left out. The engine must have room for [`SESSIONS`] sessions.
    ///
    /// # Errors
    /// [`EvalError::Pipeline`] if a method does not fit the model.
    pub fn new(engine: &'a mut Engine, pipelines: &[Pipeline]) -> Result<Self, EvalError> {
        let mut different = vec![Pipeline::full()];
        for pipeline in pipelines {
            if !different.contains(pipeline) {
                engine.session_with(pipeline).map_err(|error| EvalError::Pipeline {
                    kv: pipeline.to_string(),
                    reason: error.to_string(),
                })?;
                different.push(pipeline.clone());
            }
        }
        let variants = different.iter().map(ToString::to_string).collect();
        Ok(Self { engine, pipelines: different, variants })
    }
}

impl Subject for EngineSubject<'_> {
    type Sequence = EngineSequence;

    fn variants(&self) -> &[String] {
        &self.variants
    }

    fn context_tokens(&self) -> usize {
        self.engine.context_tokens()
    }

    fn prefill(&mut self, variant: usize, tokens: &[u32]) -> Result<EngineSequence, EvalError> {
        let mut session = self.engine.session_with(&self.pipelines[variant])?;
        let logits = self.engine.read(&mut session, tokens, true)?;
        Ok(EngineSequence { session, logits })
    }

    fn append(&mut self, sequence: &mut EngineSequence, tokens: &[u32]) -> Result<(), EvalError> {
        // Not the end of a prompt: what the method decided stays, the new tokens are kept densely.
        sequence.logits = self.engine.read(&mut sequence.session, tokens, false)?;
        Ok(())
    }

    fn fork(&mut self, sequence: &EngineSequence) -> Result<EngineSequence, EvalError> {
        let session = self.engine.fork(&sequence.session);
        Ok(EngineSequence { session, logits: sequence.logits.clone() })
    }

    fn decode(&mut self, sequence: &mut EngineSequence, token: u32) -> Result<(), EvalError> {
        let logits = &mut sequence.logits;
        self.engine.decode(&mut sequence.session, &[token], &mut |_, row| {
            logits.clear();
            logits.extend_from_slice(row);
        })?;
        Ok(())
    }

    fn logits<'b>(&self, sequence: &'b EngineSequence) -> &'b [f32] {
        &sequence.logits
    }

    fn kv_bytes(&self, sequence: &EngineSequence) -> usize {
        self.engine.kv_bytes(&sequence.session)
    }

    fn kv_file_bytes(&self, sequence: &EngineSequence) -> usize {
        self.engine.kv_file_bytes(&sequence.session)
    }
}
