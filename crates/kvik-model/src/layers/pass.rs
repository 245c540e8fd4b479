//! One forward pass: the tokens of some sequences, and what the layers share while it lasts.

use std::ops::Range;

use kvik_kernels::{
    Phase, Phases, ThreadPool,
    attention::{AttentionRows, AttentionScratch, AttentionShape},
    matmul::Activations,
};
use kvik_kv::{CacheError, KvStore, SequenceCache, Sequences, StepQueries};

use super::Rows;

/// For which tokens of a span logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// For none: a prefill chunk that is not the last.
    None,
    /// For the last.
    Last,
    /// For every one.
    All,
    /// For none: every token's hidden state behind the last norm is wanted itself.
    Hidden,
}

/// New tokens of one sequence.
pub struct Span<'a> {
    /// What came before them; the pass adds them.
    pub cache: &'a mut SequenceCache,
    /// At least one token.
    pub tokens: &'a [u32],
    /// Which logits are wanted.
    pub logits: Logits,
    /// What the tokens are computed for.
    pub phase: Phase,
}

/// Space that passes reuse.
pub struct Workspace {
    pub(crate) activations: Activations,
    attention: AttentionScratch,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    pub(crate) phases: Phases,
    logit_rows: Vec<usize>,
    /// Which of `logit_rows` are wanted themselves, and not their logits.
    hidden: Vec<bool>,
    log_sum_exp: Vec<f32>,
}

impl Workspace {
    /// Space for passes on `threads` threads over caches of up to `context_tokens` tokens, with heads of `shape`.
    pub fn new(threads: usize, shape: &AttentionShape, context_tokens: usize) -> Self {
        Self {
            activations: Activations::new(),
            attention: AttentionScratch::new(threads, shape, context_tokens),
            tokens: Vec::new(),
            positions: Vec::new(),
            phases: Phases::default(),
            logit_rows: Vec::new(),
            hidden: Vec::new(),
            log_sum_exp: Vec::new(),
        }
    }
}

/// What the layers of a network share during a forward pass.
pub struct Pass<'a, 'b> {
    /// Threads to run on.
    pub pool: &'a ThreadPool,
    pub(crate) workspace: &'a mut Workspace,
    store: &'a mut KvStore,
    spans: &'a mut [Span<'b>],
    /// What a method could not do, once one has failed: the pass then runs to its end without attention.
    failure: Option<CacheError>,
}

impl<'a, 'b> Pass<'a, 'b> {
    /// A pass over `spans`, for whose tokens room is reserved in `store`.
    pub(crate) fn new(
        pool: &'a ThreadPool,
        workspace: &'a mut Workspace,
        store: &'a mut KvStore,
        spans: &'a mut [Span<'b>],
    ) -> Self {
        workspace.tokens.clear();
        workspace.positions.clear();
        workspace.phases.clear();
        workspace.logit_rows.clear();
        workspace.hidden.clear();
        for span in spans.iter() {
            let (row, position) = (workspace.tokens.len(), span.cache.len() as u32);
            workspace.tokens.extend_from_slice(span.tokens);
            workspace.phases.push(span.tokens.len(), span.phase);
            workspace.positions.extend(position..position + span.tokens.len() as u32);
            let rows = row..workspace.tokens.len();
            match span.logits {
                Logits::None => {}
                Logits::Last => workspace.logit_rows.extend(rows.last()),
                Logits::All | Logits::Hidden => workspace.logit_rows.extend(rows),
            }
            workspace.hidden.resize(workspace.logit_rows.len(), span.logits == Logits::Hidden);
        }
        Self { pool, workspace, store, spans, failure: None }
    }

    /// Tokens in the pass.
    pub fn rows(&self) -> usize {
        self.workspace.tokens.len()
    }

    /// The tokens, span after span.
    pub fn tokens(&self) -> &[u32] {
        &self.workspace.tokens
    }

    /// Position of each token in its sequence.
    pub fn positions(&self) -> &[u32] {
        &self.workspace.positions
    }

    /// The rows of `x` for which logits are wanted, or which are wanted themselves. From here on the pass has these rows only, and multiplies them as
    /// decoding does: nothing averages out errors of the logits.
    pub fn logit_rows(&mut self, x: &Rows) -> Rows {
        let mut out = Rows::new(self.workspace.logit_rows.len(), x.cols());
        for (row, &source) in self.workspace.logit_rows.iter().enumerate() {
            out[row * x.cols()..(row + 1) * x.cols()].copy_from_slice(x.row(source));
        }
        self.has_rows(out.rows());
        out
    }

    /// Separates what [`Self::logit_rows`] has become behind the last norm: first the rows for which logits are wanted, the only
    /// ones that the pass has from here on, then those that are wanted themselves.
    pub(crate) fn split_hidden(&mut self, x: Rows) -> (Rows, Rows) {
        let hidden = self.workspace.hidden.iter().filter(|hidden| **hidden).count();
        if hidden == 0 {
            let none = Rows::new(0, x.cols());
            return (x, none);
        }
        let mut split = [Rows::new(x.rows() - hidden, x.cols()), Rows::new(hidden, x.cols())];
        let mut filled = [0, 0];
        for (row, &hidden) in self.workspace.hidden.iter().enumerate() {
            let (side, cols) = (usize::from(hidden), x.cols());
            split[side][filled[side] * cols..][..cols].copy_from_slice(x.row(row));
            filled[side] += 1;
        }
        let [logits, hidden] = split;
        self.has_rows(logits.rows());
        (logits, hidden)
    }

    /// From here on the pass has `rows` rows, computed as those of decoded tokens.
    fn has_rows(&mut self, rows: usize) {
        self.workspace.phases.clear();
        self.workspace.phases.push(rows, Phase::Decode);
    }

    /// Adds the new keys and values of `layer` to the caches, then lets the queries attend over them.
    ///
    /// `queries` and the result are `[tokens, heads × dim]`, `keys` and `values` `[tokens, kv_heads × dim]`.
    pub fn attend(
        &mut self,
        layer: usize,
        shape: &AttentionShape,
        queries: &Rows,
        keys: &Rows,
        values: &Rows,
    ) -> Rows {
        let mut row = 0;
        for span in self.spans.iter_mut() {
            let rows = row..row + span.tokens.len();
            row = rows.end;
            let of_span = |x: &Rows| rows.start * x.cols()..rows.end * x.cols();
            span.cache.append(self.pool, self.store, layer, &keys[of_span(keys)], &values[of_span(values)]);
        }
        let mut out = Rows::new(queries.rows(), shape.heads * shape.tile.value_dim);
        self.before_attention(layer, shape, queries);
        if self.failure.is_some() {
            return out;
        }
        let observed = self.spans.iter().any(|span| span.cache.evidence().any());
        let Workspace { positions, attention, log_sum_exp, .. } = &mut *self.workspace;
        log_sum_exp.resize(if observed { queries.rows() * shape.heads } else { 0 }, 0.0);
        let wanted = observed.then_some(&mut log_sum_exp[..]);
        let rows = AttentionRows { queries, positions, out: &mut out, log_sum_exp: wanted };
        kvik_kv::attend(self.pool, self.store, &Batch(self.spans), layer, shape, rows, attention);
        if observed {
            self.observe(layer, shape, queries);
        }
        out
    }

    /// Lets the methods of each sequence see its queries first, then brings what they will visit.
    fn before_attention(&mut self, layer: usize, shape: &AttentionShape, queries: &Rows) {
        let mut rows = SpanRows::default();
        for span in self.spans.iter_mut() {
            let step = rows.next(span, shape, queries, &self.workspace.positions);
            if self.failure.is_none() {
                let seen = span.cache.before_attention(self.pool, self.store, layer, step);
                self.failure = seen.err();
            }
        }
        for span in self.spans.iter_mut() {
            if self.failure.is_none() {
                self.failure = span.cache.bring_visited(self.store, layer).err();
            }
        }
    }

    /// Gives each sequence what its methods want to know.
    fn observe(&mut self, layer: usize, shape: &AttentionShape, queries: &Rows) {
        let mut rows = SpanRows::default();
        for span in self.spans.iter_mut() {
            let start = rows.0 * shape.heads;
            let step = rows.next(span, shape, queries, &self.workspace.positions);
            let log_sum_exp = &self.workspace.log_sum_exp[start..rows.0 * shape.heads];
            let seen = span.cache.observe(self.pool, self.store, layer, step, log_sum_exp);
            self.failure = self.failure.take().or(seen.err());
        }
    }

    /// Counts the tokens in, once every layer has its rows.
    pub(crate) fn commit(self) -> Result<(), CacheError> {
        if let Some(failure) = self.failure {
            for span in self.spans.iter_mut() {
                let len = span.cache.len();
                span.cache.truncate(self.store, len);
            }
            return Err(failure);
        }
        for span in self.spans.iter_mut() {
            span.cache.commit(self.pool, self.store, span.tokens.len(), span.phase)?;
        }
        Ok(())
    }
}

/// Goes over the rows of a pass span by span; holds the first row of the next.
#[derive(Default)]
struct SpanRows(usize);

impl SpanRows {
    fn next<'c>(
        &mut self,
        span: &Span<'_>,
        shape: &'c AttentionShape,
        queries: &'c Rows,
        positions: &'c [u32],
    ) -> StepQueries<'c> {
        let rows = self.0..self.0 + span.tokens.len();
        self.0 = rows.end;
        let queries = &queries[rows.start * queries.cols()..rows.end * queries.cols()];
        StepQueries { shape, phase: span.phase, queries, positions: &positions[rows] }
    }
}

/// The spans as the cache sees them.
struct Batch<'a, 'b>(&'a [Span<'b>]);

impl Sequences for Batch<'_, '_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn cache(&self, sequence: usize) -> &SequenceCache {
        self.0[sequence].cache
    }

    fn rows(&self, sequence: usize) -> Range<usize> {
        let start = self.0[..sequence].iter().map(|span| span.tokens.len()).sum();
        start..start + self.0[sequence].tokens.len()
    }

    fn phase(&self, sequence: usize) -> Phase {
        self.0[sequence].phase
    }
}
