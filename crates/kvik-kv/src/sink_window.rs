//! Sinks and a recent window: the rows that a streaming head keeps.

use crate::{CacheError, OpenCache, select::sinks_and_recent};

/// How many of the first and of the last rows stay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SinkWindow {
    pub(crate) sinks: usize,
    pub(crate) recent: usize,
}

impl SinkWindow {
    /// Cuts a head down to the window, after any number of new rows; rows keep their order.
    pub(crate) fn cut(
        self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        kv_head: usize,
    ) -> Result<(), CacheError> {
        let keep = sinks_and_recent(&cache.positions(layer, kv_head), self.sinks, self.recent);
        cache.retain(layer, kv_head, &keep)
    }

    /// The same after a decoded token, without moving other rows: the oldest that is no sink goes, and the newest takes its place.
    pub(crate) fn slide(
        self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        kv_head: usize,
    ) -> Result<(), CacheError> {
        while cache.rows(layer, kv_head) > self.sinks + self.recent {
            let oldest = cache.oldest(layer, kv_head, self.sinks);
            cache.evict(layer, kv_head, oldest)?;
        }
        Ok(())
    }
}
