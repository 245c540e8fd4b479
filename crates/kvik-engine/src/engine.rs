//! A model that is ready to run: weights, tokenizer, chat template, threads and the store of all sessions' keys and
//! values.

use crate::{
    constraint::{ConstraintCompiler, ConstraintError},
    error::EngineError,
    facts::EngineFacts,
    generate::{Event, GenerateRequest, Generation, Generator},
    language_model::{LanguageModel, LocalModel},
    sampling::TokenMask,
    score::{self, Score},
    session::{Sequence, Session, check_vocabulary},
};
use kvik_kernels::{Phase, ThreadPool};
use kvik_kv::{KvShape, KvStore, Method, Pipeline};
use kvik_model::{
    ChatTemplate, ChatTemplateError, Checkpoint, Model, ModelConfig, Tokenizer, layers::Logits,
};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, OnceLock},
};

/// More threads than any machine of today has cores.
const MAX_THREADS: usize = 1024;
/// Up to here every position is exact in the f32 that rotary embeddings multiply it in.
const MAX_CONTEXT_TOKENS: usize = 1 << 24;

/// How an engine runs; the default takes the whole machine and the model's whole context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads; `None` is one for each core that the process may use.
    pub threads: Option<usize>,
    /// The longest sequence, in tokens; `None` is as long as the model was trained for. A longer one is accepted where
    /// the model's positions have no end, and the text gets worse from there on. Memory is taken as tokens come.
    pub context_tokens: Option<usize>,
    /// Tokens of a prompt that are computed at once: more is faster up to some hundreds and takes memory for each.
    pub prefill_chunk_tokens: usize,
    /// Sessions that may fill their context at the same time, a text that is being scored among them; at least 1.
    pub sessions: usize,
    /// The pipeline that sessions will have, for methods that change the model's weights when they are loaded; others need not
    /// be named here.
    pub pipeline: Pipeline,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            context_tokens: None,
            prefill_chunk_tokens: 512,
            sessions: 1,
            pipeline: Pipeline::full(),
        }
    }
}

impl EngineOptions {
    /// Checks what can be checked without a model, so that none is fetched in vain. [`Engine::load`] does it as well.
    ///
    /// # Errors
    /// [`EngineError`] says which option cannot be.
    pub fn check(&self) -> Result<(), EngineError> {
        if let Some(threads) = self.threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
            return Err(EngineError::Threads { threads, max: MAX_THREADS });
        }
        if self.prefill_chunk_tokens == 0 {
            return Err(EngineError::PrefillChunk);
        }
        let limit = MAX_CONTEXT_TOKENS;
        match self.context_tokens.filter(|asked| !(1..=limit).contains(asked)) {
            Some(asked) => Err(EngineError::Context { asked, limit }),
            None => Ok(()),
        }
    }
}

/// A model that is ready to run.
pub struct Engine {
    pub(crate) local: LocalModel,
    pub(crate) facts: Arc<EngineFacts>,
    pub(crate) pool: ThreadPool,
    pub(crate) prefill_chunk_tokens: usize,
    /// Made when the first constraint comes.
    constraints: OnceLock<Result<Arc<ConstraintCompiler>, ConstraintError>>,
}

impl Engine {
    /// Loads the model at `path`: a GGUF file, or a folder with safetensors and a `config.json`.
    ///
    /// # Errors
    /// [`EngineError`] says what is wrong with the files or the options.
    pub fn load(path: &Path, options: &EngineOptions) -> Result<Self, EngineError> {
        options.check()?;
        let pool = options.threads.map_or_else(ThreadPool::with_all_cores, ThreadPool::new);
        let prefill_chunk_tokens = options.prefill_chunk_tokens;
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = Tokenizer::from_checkpoint(&checkpoint).map_err(Arc::new);
        let chat_template = ChatTemplate::from_checkpoint(&checkpoint);
        let mut model = Model::load(&checkpoint, &pool, options.context_tokens)?;
        model.prepare_for(&pool, &options.pipeline)?;

        let config = model.config();
        let limit = config.position_limit.unwrap_or(MAX_CONTEXT_TOKENS).min(MAX_CONTEXT_TOKENS);
        let context_tokens = options.context_tokens.unwrap_or(config.trained_context.min(limit));
        if !(1..=limit).contains(&context_tokens) {
            return Err(EngineError::Context { asked: context_tokens, limit });
        }
        let step_tokens = prefill_chunk_tokens.max(score::MAX_CHUNK_TOKENS);
        let store = KvStore::new(model.kv_shape().clone(), options.sessions, context_tokens, step_tokens)?;
        let workspace = model.workspace(pool.threads(), context_tokens);
        let local = LocalModel { model, store, workspace };
        let facts = EngineFacts {
            model_name: model_name(path),
            model: local.model.config().clone(),
            tokenizer,
            chat_template,
            context_tokens,
            vocabulary: local.model.config().vocabulary,
            kv_shape: local.model.kv_shape().clone(),
            threads: pool.threads(),
        };
        let constraints = OnceLock::new();
        Ok(Self { local, facts: Arc::new(facts), pool, prefill_chunk_tokens, constraints })
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// [`EngineError::Tokenizer`] if it has none that can be used. Such a model still loads, for tokens can be scored
    /// without.
    pub fn tokenizer(&self) -> Result<&Tokenizer, EngineError> {
        Ok(self.facts.tokenizer.as_ref().map_err(Arc::clone)?)
    }

    /// How the model wants a conversation written; `None` for a base model.
    ///
    /// # Errors
    /// What is wrong with the template. A model with a broken one still loads, for plain completion needs none.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, &ChatTemplateError> {
        self.facts.chat_template.as_ref().map(Option::as_ref)
    }

    /// What is known of the model, to share with other threads.
    pub fn facts(&self) -> &Arc<EngineFacts> {
        &self.facts
    }

    /// What compiles constraints for this model; made when it is first asked for, and shared.
    ///
    /// # Errors
    /// [`EngineError::Tokenizer`] or [`EngineError::Constraint`] if the model's tokens cannot be used for it.
    pub fn constraint_compiler(&self) -> Result<Arc<ConstraintCompiler>, EngineError> {
        let tokenizer = self.tokenizer()?;
        let compiler = self.constraints.get_or_init(|| ConstraintCompiler::new(tokenizer).map(Arc::new));
        Ok(compiler.clone()?)
    }

    /// What the model is.
    pub fn model_config(&self) -> &ModelConfig {
        self.local.model.config()
    }

    /// The longest sequence, in tokens.
    pub fn context_tokens(&self) -> usize {
        self.local.store.capacity_tokens()
    }

    /// Threads that the engine runs on.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// A new, empty sequence.
    pub fn session(&self) -> Session {
        Session::new(self.local.store.sequence())
    }

    /// A new, empty sequence whose cache the methods of `pipeline` rewrite.
    ///
    /// # Errors
    /// [`EngineError::Cache`] if a method does not fit the model.
    pub fn session_with(&self, pipeline: &Pipeline) -> Result<Session, EngineError> {
        Ok(Session::new(self.local.store.sequence_with(pipeline)?))
    }

    /// As [`Self::session_with`], and after the pipeline's methods comes `last`: one that watches, for example.
    ///
    /// # Errors
    /// As for [`Self::session_with`].
    pub fn session_watched(
        &self,
        pipeline: &Pipeline,
        last: Box<dyn Method>,
    ) -> Result<Session, EngineError> {
        let store = &self.local.store;
        let mut methods = pipeline.methods(store.shape())?;
        methods.push(last);
        Ok(Session::new(store.sequence_of(methods)))
    }

    /// A second sequence with the same past. Memory is shared until one of the two changes it.
    pub fn fork(&mut self, session: &Session) -> Session {
        let mut fork = Session::new(session.cache.fork(&mut self.local.store));
        fork.tokens.extend_from_slice(&session.tokens);
        fork
    }

    /// Forgets all but the first `tokens` tokens of a session and returns how many remain: `tokens`, or 0 where what the
    /// shorter sequence needs is gone, because a sliding window left it behind or a method rewrote it.
    pub fn truncate(&mut self, session: &mut Session, tokens: usize) -> usize {
        let kept = session.cache.truncate(&mut self.local.store, tokens);
        session.tokens.truncate(kept);
        kept
    }

    /// Reads `tokens` as the continuation of a session's prompt, and returns the logits `[vocabulary]` after the last of them.
    /// With `ends_prompt` the methods of its pipeline rewrite the cache then, as after the prompt of a request.
    ///
    /// # Errors
    /// [`EngineError`] when `tokens` is empty, does not fit the context or has unknown tokens.
    pub fn read(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
        ends_prompt: bool,
    ) -> Result<Vec<f32>, EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let chunk_tokens = self.prefill_chunk_tokens;
        let mut model = self.local.bind(&self.pool, &mut session.cache);
        check_vocabulary(tokens, model.vocab_size())?;
        let mut sequence = Sequence { model: &mut model, tokens: &mut session.tokens };
        let mut logits = None;
        for (index, chunk) in tokens.chunks(chunk_tokens).enumerate() {
            let last = (index + 1) * chunk_tokens >= tokens.len();
            let wanted = if last { Logits::Last } else { Logits::None };
            logits = Some(sequence.extend(chunk, wanted, Phase::Prefill)?);
        }
        if ends_prompt {
            sequence.model.end_of_prompt()?;
        }
        Ok(logits.map(|rows| rows.to_vec()).unwrap_or_default())
    }

    /// Appends `tokens` one by one as if they had been generated, and gives `on_logits` the logits `[vocabulary]` after each,
    /// with its index.
    ///
    /// # Errors
    /// As for [`Self::read`]; tokens before the failure stay.
    pub fn decode(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let mut model = self.local.bind(&self.pool, &mut session.cache);
        check_vocabulary(tokens, model.vocab_size())?;
        let mut sequence = Sequence { model: &mut model, tokens: &mut session.tokens };
        for (index, &token) in tokens.iter().enumerate() {
            let logits = sequence.extend(&[token], Logits::Last, Phase::Decode)?;
            on_logits(index, &logits);
        }
        Ok(())
    }

    /// Bytes of RAM that the keys and values of a session take.
    pub fn kv_bytes(&self, session: &Session) -> usize {
        session.cache.used_bytes(&self.local.store)
    }

    /// Bytes of files that the keys and values of a session take.
    pub fn kv_file_bytes(&self, session: &Session) -> usize {
        session.cache.file_bytes(&self.local.store)
    }

    /// Bytes of RAM that the keys and values of all sessions take.
    pub fn store_bytes(&self) -> usize {
        self.local.store.used_bytes()
    }

    /// Bytes of files that the keys and values of all sessions take.
    pub fn store_file_bytes(&self) -> usize {
        self.local.store.file_bytes()
    }

    /// Blocks that the keys and values of all sessions lie in.
    pub fn store_blocks(&mut self) -> usize {
        self.local.store.used_blocks()
    }

    /// The keys and values of all sessions: for what works on caches themselves, as [`prefix`](crate::prefix) does.
    pub fn store(&mut self) -> &mut KvStore {
        &mut self.local.store
    }

    /// What the model caches, and the bytes of an uncompressed bf16 cache.
    pub fn kv_shape(&self) -> &KvShape {
        self.local.store.shape()
    }

    /// Continues a prompt in `session`, and tells `on_event` of every chunk and token, which may break to stop.
    ///
    /// What the prompt shares with what the session holds is not computed again; afterwards the session holds the
    /// prompt and the completion, but for the last token. `session` must be of this engine.
    ///
    /// # Errors
    /// [`EngineError`] says what is wrong with the request; the session then holds less, but nothing wrong.
    pub fn generate(
        &mut self,
        session: &mut Session,
        request: &GenerateRequest,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let context_tokens = self.context_tokens();
        let mask = match &request.constraint {
            Some(source) => {
                Some(Box::new(self.constraint_compiler()?.compile(source)?) as Box<dyn TokenMask>)
            }
            None => None,
        };
        let tokenizer = self.facts.tokenizer.as_ref().map_err(Arc::clone)?;
        let mut model = self.local.bind(&self.pool, &mut session.cache);
        let generator = Generator {
            sequence: Sequence { model: &mut model, tokens: &mut session.tokens },
            tokenizer,
            context_tokens,
            prefill_chunk_tokens: self.prefill_chunk_tokens,
            mask,
        };
        generator.run(request, on_event)
    }

    /// The log-probability of each token of `ids` given those before it, and of the `top` most likely at its place, all
    /// tokens computed as those of `phase`, with a cache that the methods of `pipeline` rewrite: while tokens are decoded, or
    /// chunk by chunk of a prompt. Those that wait for a prompt's end do nothing.
    ///
    /// `on_progress(done, total)` hears how many tokens are scored.
    ///
    /// # Errors
    /// [`EngineError`] when the text has less than two tokens, does not fit the context, or has unknown tokens.
    pub fn score(
        &mut self,
        pipeline: &Pipeline,
        ids: &[u32],
        top: usize,
        phase: Phase,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Score, EngineError> {
        let context_tokens = self.context_tokens();
        let mut session = self.session_with(pipeline)?;
        let mut model = self.local.bind(&self.pool, &mut session.cache);
        let mut sequence = Sequence { model: &mut model, tokens: &mut session.tokens };
        score::score(&mut sequence, &self.pool, context_tokens, ids, top, phase, on_progress)
    }
}

/// What people call a model: the name of its file or folder.
fn model_name(path: &Path) -> String {
    // A folder's name may have dots, as those of versions do.
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_no_model_can_have_are_found_without_one() {
        let refused = |options: EngineOptions| options.check().unwrap_err().to_string();
        let plain = EngineOptions::default;
        assert!(plain().check().is_ok());
        assert!(refused(EngineOptions { threads: Some(0), ..plain() }).contains("threads"));
        assert!(refused(EngineOptions { threads: Some(MAX_THREADS + 1), ..plain() }).contains("threads"));
        assert!(refused(EngineOptions { prefill_chunk_tokens: 0, ..plain() }).contains("prefill"));
        assert!(refused(EngineOptions { context_tokens: Some(0), ..plain() }).contains("context of 0"));
        let most = EngineOptions { context_tokens: Some(MAX_CONTEXT_TOKENS), ..plain() };
        assert!(most.check().is_ok());
    }
}
