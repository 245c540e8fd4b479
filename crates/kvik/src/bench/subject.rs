//! Kvik itself under measurement: a model, called as the engine calls it.

use std::time::Instant;

use kvik_kernels::ThreadPool;
use kvik_kv::{CacheError, KvStore, Pipeline, SequenceCache};
use kvik_model::{
    ForwardError, Model,
    layers::{Logits, Phase, Span, Workspace},
};

use super::figure::{Figure, PREFILL_CHUNK};

/// A loaded model and caches for the figures that it is to be measured at.
pub struct Subject<'a> {
    model: &'a Model,
    pool: &'a ThreadPool,
    store: KvStore,
    workspace: Workspace,
    caches: Vec<SequenceCache>,
    /// Methods act on a whole prompt: a sequence that lacks tokens is then read from its beginning.
    whole_prompts: bool,
}

impl<'a> Subject<'a> {
    /// `model` on the threads of `pool`, with room for each of `figures` and caches that `pipeline` rewrites.
    ///
    /// # Errors
    /// If the system refuses the address space of the caches, or a method does not fit the model.
    pub fn new(
        model: &'a Model,
        pool: &'a ThreadPool,
        pipeline: &Pipeline,
        figures: &[Figure],
    ) -> Result<Self, CacheError> {
        let most = |of: fn(Figure) -> usize| figures.iter().map(|&figure| of(figure)).max().unwrap_or(1);
        let (sequences, tokens) = (most(Figure::sequences), most(Figure::length));
        let store = KvStore::new(model.kv_shape().clone(), sequences, tokens, PREFILL_CHUNK)?;
        let workspace = model.workspace(pool.threads(), tokens);
        let caches = (0..sequences).map(|_| store.sequence_with(pipeline)).collect::<Result<_, _>>()?;
        Ok(Self { model, pool, store, workspace, caches, whole_prompts: !pipeline.is_full() })
    }

    /// Measures `figure` once, in tokens per second.
    ///
    /// # Errors
    /// If the figure is none of those that room was made for.
    pub fn measure(&mut self, figure: Figure) -> Result<f64, ForwardError> {
        let seconds = match figure {
            Figure::Prefill { prompt } => {
                self.caches[0].truncate(&mut self.store, 0);
                let start = Instant::now();
                self.fill(0, prompt)?;
                start.elapsed()
            }
            Figure::Decode { sequences, depth, gen_tokens } => {
                for sequence in 0..sequences {
                    self.fill(sequence, depth)?;
                }
                let start = Instant::now();
                for _ in 0..gen_tokens {
                    self.step(sequences)?;
                }
                start.elapsed()
            }
        };
        Ok(figure.tokens() as f64 / seconds.as_secs_f64())
    }

    /// Brings a sequence to `depth` tokens: forgets those behind, computes those that lack, in the engine's chunks.
    fn fill(&mut self, sequence: usize, depth: usize) -> Result<(), ForwardError> {
        let cache = &mut self.caches[sequence];
        let mut kept = cache.truncate(&mut self.store, depth);
        if self.whole_prompts && kept < depth {
            kept = cache.truncate(&mut self.store, 0);
        }
        let vocabulary = self.model.config().vocabulary;
        let tokens: Vec<u32> = (kept..depth).map(|position| token(sequence, position, vocabulary)).collect();
        let mut chunks = tokens.chunks(PREFILL_CHUNK).peekable();
        while let Some(tokens) = chunks.next() {
            let logits = if chunks.peek().is_some() { Logits::None } else { Logits::Last };
            let span = Span { cache, tokens, logits, phase: Phase::Prefill };
            self.model.forward(self.pool, &mut self.workspace, &mut self.store, &mut [span])?;
            if chunks.peek().is_none() {
                cache.end_of_prompt(self.pool, &mut self.store)?;
            }
        }
        Ok(())
    }

    /// One more token for each of the first `sequences` sequences, all in one pass.
    fn step(&mut self, sequences: usize) -> Result<(), ForwardError> {
        let vocabulary = self.model.config().vocabulary;
        let caches = &mut self.caches[..sequences];
        let next =
            caches.iter().enumerate().map(|(sequence, cache)| [token(sequence, cache.len(), vocabulary)]);
        let next: Vec<[u32; 1]> = next.collect();
        let mut spans: Vec<Span<'_>> = caches
            .iter_mut()
            .zip(&next)
            .map(|(cache, tokens)| Span { cache, tokens, logits: Logits::Last, phase: Phase::Decode })
            .collect();
        self.model.forward(self.pool, &mut self.workspace, &mut self.store, &mut spans)?;
        Ok(())
    }
}

/// The token at a position: looks random, is always the same. (The finaliser of SplitMix64, Steele et al. 2014.)
fn token(sequence: usize, position: usize, vocabulary: usize) -> u32 {
    let mut x = ((sequence as u64) << 32 | position as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((x ^ x >> 31) % vocabulary as u64) as u32
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kvik_model::Checkpoint;

    use super::*;

    #[test]
    fn every_figure_ends_with_its_number_of_tokens_in_every_sequence() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models");
        for name in ["llama", "gemma3"] {
            let pool = ThreadPool::new(2);
            let model = Model::load(&Checkpoint::open(&folder.join(name)).unwrap(), &pool, None).unwrap();
            let figures = [
                Figure::Prefill { prompt: 20 },
                Figure::Decode { sequences: 1, depth: 0, gen_tokens: 3 },
                Figure::Decode { sequences: 1, depth: 30, gen_tokens: 3 },
                Figure::Decode { sequences: 4, depth: 9, gen_tokens: 5 },
            ];
            let mut subject = Subject::new(&model, &pool, &Pipeline::full(), &figures).unwrap();
            for figure in figures.into_iter().chain(figures) {
                assert!(subject.measure(figure).unwrap() > 0.0);
                for cache in &subject.caches[..figure.sequences()] {
                    assert_eq!(cache.len(), figure.length(), "{name}, {figure}");
                }
            }
        }
    }

    #[test]
    fn tokens_are_valid_and_differ() {
        let tokens: std::collections::HashSet<u32> =
            (0..1000).map(|position| token(0, position, 50_000)).collect();
        assert!(tokens.len() > 950 && tokens.iter().all(|&token| token < 50_000));
        assert_ne!(token(0, 5, 50_000), token(1, 5, 50_000));
    }
}
