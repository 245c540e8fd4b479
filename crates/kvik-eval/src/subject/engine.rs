//! An engine with its plain cache.

use kvik_engine::{Engine, Phase, Session};

use super::{FULL, Subject};
use crate::EvalError;

/// An engine under test.
pub struct EngineSubject<'a> {
    engine: &'a mut Engine,
    variants: Vec<String>,
}

/// A sequence of an engine, with the logits after its last token.
pub struct EngineSequence {
    session: Session,
    logits: Vec<f32>,
}

impl<'a> EngineSubject<'a> {
    /// `engine` under test. It must have room for two sessions.
    pub fn new(engine: &'a mut Engine) -> Self {
        Self { engine, variants: vec![FULL.to_owned()] }
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

    fn prefill(&mut self, _: usize, tokens: &[u32]) -> Result<EngineSequence, EvalError> {
        let mut session = self.engine.session();
        let logits = self.engine.append(&mut session, tokens, Phase::Prefill)?;
        Ok(EngineSequence { session, logits })
    }

    fn append(&mut self, sequence: &mut EngineSequence, tokens: &[u32]) -> Result<(), EvalError> {
        sequence.logits = self.engine.append(&mut sequence.session, tokens, Phase::Prefill)?;
        Ok(())
    }

    fn fork(&mut self, sequence: &EngineSequence) -> Result<EngineSequence, EvalError> {
        let mut session = self.engine.session();
        let logits = self.engine.append(&mut session, sequence.session.tokens(), Phase::Prefill)?;
        Ok(EngineSequence { session, logits })
    }

    fn decode(&mut self, sequence: &mut EngineSequence, token: u32) -> Result<(), EvalError> {
        sequence.logits = self.engine.append(&mut sequence.session, &[token], Phase::Decode)?;
        Ok(())
    }

    fn logits<'b>(&self, sequence: &'b EngineSequence) -> &'b [f32] {
        &sequence.logits
    }

    fn kv_bytes(&self, sequence: &EngineSequence) -> usize {
        self.engine.kv_bytes(&sequence.session)
    }
}
