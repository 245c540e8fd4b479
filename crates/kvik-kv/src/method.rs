//! A KV method: what it may do to a sequence's cache, and when.
//!
//! A method is one file that implements some hooks of [`Method`]; every hook does nothing unless it is written. Methods never
//! touch the model: they see the cache through [`OpenCache`], and rewrite its segments. One value of a method serves one
//! sequence, so its fields are its parameters and whatever it has to remember of that sequence.

use crate::{CacheError, Evidence, LayerShape, OpenCache, StepQueries, ValueBasis};

/// One method at work on one sequence.
///
/// Hooks of a pipeline run method by method, in the order in which the pipeline names them.
pub trait Method: Send + Sync {
    /// What it wants to be gathered.
    fn evidence(&self) -> Evidence {
        Evidence::NONE
    }

    /// True if [`Self::value_bases`] asks for something.
    fn changes_weights(&self) -> bool {
        false
    }

    /// The basis in which the values of each KV head of a layer are to be cached, `[kv_heads]`; `None` for the model's own. It is
    /// built into the model's weights when they are loaded, and costs nothing from then on.
    fn value_bases(&self, layer: usize, shape: LayerShape) -> Option<Vec<ValueBasis>> {
        let _ = (layer, shape);
        None
    }

    /// True if [`Self::before_attention`] does something: only then are queries handed out.
    fn selects(&self) -> bool {
        false
    }

    /// False if it changes no row, so that a sequence can be cut back to any part of its prompt.
    fn rewrites(&self) -> bool {
        true
    }

    /// True if it leaves a prompt alone until [`Self::end_of_prompt`]: until then no row is changed, dropped or moved, and nothing
    /// is remembered but the queries of [`Evidence::window`]. What the sequence holds before is what any other one would, so
    /// the two may share it ([`SequenceCache::start_from`](crate::SequenceCache::start_from)).
    fn waits_for_end(&self) -> bool {
        false
    }

    /// Before the queries of a step attend at `layer`, the step's own rows appended: what they will visit can be brought,
    /// rebuilt or chosen here ([`OpenCache::visit`]).
    ///
    /// # Errors
    /// [`CacheError`] stops the pass.
    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        let _ = (cache, layer, queries);
        Ok(())
    }

    /// After a chunk of a prompt, the last one included.
    ///
    /// # Errors
    /// [`CacheError`] when the cache cannot be rewritten; the pass fails.
    fn after_chunk(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let _ = cache;
        Ok(())
    }

    /// When a prompt has been read to its end; `turn` counts the prompts of the sequence from 0.
    ///
    /// # Errors
    /// As for [`Self::after_chunk`].
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, turn: usize) -> Result<(), CacheError> {
        let _ = (cache, turn);
        Ok(())
    }

    /// After a step that decoded tokens.
    ///
    /// # Errors
    /// As for [`Self::after_chunk`].
    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let _ = cache;
        Ok(())
    }

    /// Bytes of memory that it keeps for the sequence beside the cache's blocks, if they grow with it.
    fn used_bytes(&self) -> usize {
        0
    }

    /// The sequence was cut back to its first `len` positions; the cache is cut already.
    fn truncated(&mut self, len: usize) {
        let _ = len;
    }

    /// Writes what it remembers of the sequence, beyond its parameters, for [`Self::restore`]. What it can find out again from the
    /// cache need not be written.
    ///
    /// # Errors
    /// A sentence, if that cannot be written: the sequence then cannot be exported.
    fn save(&self, state: &mut Vec<u8>) -> Result<(), &'static str> {
        let _ = state;
        Ok(())
    }

    /// Takes up what [`Self::save`] wrote, or what somebody else did: nothing in `state` is to be trusted.
    /// [`Self::truncated`] with the length of the sequence comes next.
    ///
    /// # Errors
    /// A sentence, if `state` is nothing that it writes.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() { Ok(()) } else { Err("it remembers nothing, and is given something".to_owned()) }
    }

    /// A value for a copy of the sequence.
    fn fork(&self) -> Box<dyn Method>;
}
