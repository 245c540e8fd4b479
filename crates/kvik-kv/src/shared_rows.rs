//! Rows that two layers keep as one.
//!
//! Both layers' heads get a segment in front whose blocks they share; what differs between the layers, how long a key and a
//! value is, stands in each layer's own [`Magnitudes`]. Attention multiplies scores and probabilities by them, so a shared row
//! is never restored in memory.

use crate::{
    CacheError, Magnitudes, OpenCache, RowStatistics, SegmentRow, head::HeadCache, segment::Segment,
    store::KvStore, tally::Encoding,
};

/// A row of two layers, told once.
#[derive(Clone, Copy, Debug)]
pub struct SharedRow<'a> {
    /// Where it lies in the head of the lower layer and in that of the upper one, counted over their segments.
    pub rows: [usize; 2],
    /// Direction of the key, `[key_dim]`, rotated as the keys of both layers are.
    pub key: &'a [f32],
    /// Direction of the value, `[value_dim]`.
    pub value: &'a [f32],
    /// Length of the key at either layer.
    pub key_lengths: [f32; 2],
    /// Length of the value at either layer.
    pub value_lengths: [f32; 2],
}

impl OpenCache<'_> {
    /// Rows of a head that lie in the segment it shares with another layer: they come first.
    pub fn shared_rows(&self, layer: usize, kv_head: usize) -> usize {
        self.segments(layer, kv_head)
            .first()
            .filter(|segment| segment.magnitudes().is_some())
            .map_or(0, Segment::len)
    }

    /// Moves `rows` from a head of either layer into the segment that the two share. Positions,
    /// biases and statistics go along.
    ///
    /// A method that later drops rows of one of the two layers takes their common blocks apart, tile by tile; while their
    /// positions differ, each layer stores its own copy.
    ///
    /// # Errors
    /// [`CacheError::Full`] if blocks that other sequences hold had to be copied and there was no room.
    ///
    /// # Panics
    /// If a row is shared already, or comes twice.
    pub fn share_rows(
        &mut self,
        layers: [usize; 2],
        kv_head: usize,
        rows: &[SharedRow<'_>],
    ) -> Result<(), CacheError> {
        if rows.is_empty() {
            return Ok(());
        }
        for (side, &layer) in layers.iter().enumerate() {
            let head = &mut self.layers[layer].heads[kv_head];
            move_rows(self.store, layer, head, side, rows)?;
        }
        let [lower, upper] = layers;
        let (below, above) = self.layers.split_at_mut(upper);
        let (lower, upper) = (&mut below[lower].heads[kv_head], &above[0].heads[kv_head]);
        let (lower, upper) = (&mut lower.segments[0], &upper.segments[0]);
        if lower.positions().eq(upper.positions()) {
            upper.share_planes(self.store, lower);
        }
        Ok(())
    }
}

/// Moves rows of one head into its shared segment, whose blocks are its own afterwards where they changed.
fn move_rows(
    store: &mut KvStore,
    layer: usize,
    head: &mut HeadCache,
    side: usize,
    rows: &[SharedRow<'_>],
) -> Result<(), CacheError> {
    let moved: Vec<SegmentRow<'_>> = rows
        .iter()
        .map(|shared| {
            let (segment, row) = head.find(shared.rows[side]);
            let segment = &head.segments[segment];
            assert!(segment.magnitudes().is_none(), "row {row} is shared already");
            let (position, bias) = (segment.position(row), segment.bias(row));
            SegmentRow { key: shared.key, value: shared.value, position, bias }
        })
        .collect();
    let statistics = head.statistics.clone();
    let mut leaves = vec![false; head.rows()];
    rows.iter().for_each(|shared| leaves[shared.rows[side]] = true);
    let stay: Vec<u32> = (0..head.rows() as u32).filter(|&row| !leaves[row as usize]).collect();
    assert_eq!(stay.len() + rows.len(), leaves.len(), "each row moves once");
    head.retain(store, &stay)?;
    if head.segments[0].magnitudes().is_none() {
        let mut segment = Segment::growing(layer, 0, 0);
        segment.set_magnitudes(Magnitudes::default());
        head.segments.insert(0, segment);
    }
    let segment = &mut head.segments[0];
    let shared = segment.len();
    let mut magnitudes = segment.take_magnitudes();
    segment.extend(store, &moved)?;
    magnitudes.keys.truncate(shared);
    magnitudes.keys.extend(rows.iter().map(|row| row.key_lengths[side]));
    magnitudes.values.truncate(shared);
    magnitudes.values.extend(rows.iter().map(|row| row.value_lengths[side]));
    segment.set_magnitudes(magnitudes);
    segment.count_rows_as(store, Encoding::MERGED_LAYERS);
    // The shared rows, the moved ones behind them, then the rest.
    let moved = rows.iter().map(|shared| shared.rows[side]);
    let stay: Vec<usize> = stay.into_iter().map(|row| row as usize).collect();
    let order: Vec<usize> =
        stay[..shared].iter().copied().chain(moved).chain(stay[shared..].iter().copied()).collect();
    let gather = |column: &[f32]| match column {
        [] => Vec::new(),
        column => order.iter().map(|&row| column[row]).collect(),
    };
    head.statistics =
        RowStatistics { accumulated: gather(&statistics.accumulated), step: gather(&statistics.step) };
    Ok(())
}
