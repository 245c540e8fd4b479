//! One forward pass: the tokens of some sequences, and what the layers share while it lasts.

use std::ops::Range;

use kvik_kernels::{
    Phase, Phases, ThreadPool,
    attention::{AttentionRows, AttentionScratch, AttentionShape},
    matmul::Activations,
};
use kvik_kv::{KvStore, SequenceCache, Sequences};

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
        for span in spans.iter() {
            let (row, position) = (workspace.tokens.len(), span.cache.len() as u32);
            workspace.tokens.extend_from_slice(span.tokens);
            workspace.phases.push(span.tokens.len(), span.phase);
            workspace.positions.extend(position..position + span.tokens.len() as u32);
            let rows = row..workspace.tokens.len();
            match span.logits {
                Logits::None => {}
                Logits::Last => workspace.logit_rows.extend(rows.last()),
                Logits::All => workspace.logit_rows.extend(rows),
            }
        }
        Self { pool, workspace, store, spans }
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

    /// The rows of `x` for which logits are wanted. From here on the pass has these rows only, and multiplies them as
    /// decoding does: nothing averages out errors of the logits.
    pub fn logit_rows(&mut self, x: &Rows) -> Rows {
        let mut out = Rows::new(self.workspace.logit_rows.len(), x.cols());
        for (row, &source) in self.workspace.logit_rows.iter().enumerate() {
            out[row * x.cols()..(row + 1) * x.cols()].copy_from_slice(x.row(source));
        }
        self.workspace.phases.clear();
        self.workspace.phases.push(out.rows(), Phase::Decode);
        out
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
        let Workspace { positions, attention, .. } = &mut *self.workspace;
        let rows = AttentionRows { queries, positions, out: &mut out };
        kvik_kv::attend(self.pool, self.store, &Batch(self.spans), layer, shape, rows, attention);
        out
    }

    /// Counts the tokens in, once every layer has its rows.
    pub(crate) fn commit(self) {
        for span in self.spans.iter_mut() {
            span.cache.commit(self.store, span.tokens.len());
        }
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
