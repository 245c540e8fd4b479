//! The cache of one layer and KV head: its segments, and what was observed of each row.
//!
//! Rows are counted over all segments, in the order in which attention folds them. What is known of a row (how much attention
//! it got) moves with it through every rewriting.

use std::{ops::Range, sync::Arc};

use kvik_kernels::attention::Turns;

use kvik_kernels::attention::TILE_TOKENS;

use crate::{
    Segment,
    segment::Plane,
    store::{Block, CacheError, KvStore},
};

/// What was observed of the rows of a head; a column is empty until it is asked for.
#[derive(Clone, Debug, Default)]
pub struct RowStatistics {
    /// Attention that each row got from all queries so far, summed over the query heads of the group.
    pub accumulated: Vec<f32>,
    /// The same of the last decoded token alone.
    pub step: Vec<f32>,
}

impl RowStatistics {
    fn columns(&mut self) -> [&mut Vec<f32>; 2] {
        [&mut self.accumulated, &mut self.step]
    }
}

/// The segments of one layer and KV head. The last one grows.
pub(crate) struct HeadCache {
    pub(crate) segments: Vec<Segment>,
    pub(crate) statistics: RowStatistics,
    /// Tiles that queries visit, if not all, counted over the segments.
    pub(crate) visits: Option<Vec<u32>>,
    /// What turns the keys, once rows are to stand without gaps.
    pub(crate) turns: Option<Arc<Turns>>,
    /// Copies of rows of the segments: queries that do not visit all tiles visit these too.
    pub(crate) copies: Vec<Segment>,
}

impl HeadCache {
    pub(crate) fn new(growing: Segment) -> Self {
        Self {
            segments: vec![growing],
            statistics: RowStatistics::default(),
            visits: None,
            copies: Vec::new(),
            turns: None,
        }
    }

    /// The last segment: new tokens go there.
    pub(crate) fn last(&self) -> &Segment {
        &self.segments[self.segments.len() - 1]
    }

    pub(crate) fn growing(&mut self) -> &mut Segment {
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    /// Rows of all segments.
    pub(crate) fn rows(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// The segment that a row lies in, and its row there.
    pub(crate) fn find(&self, mut row: usize) -> (usize, usize) {
        for (index, segment) in self.segments.iter().enumerate() {
            if row < segment.len() {
                return (index, row);
            }
            row -= segment.len();
        }
        panic!("row {row} lies beyond the last segment");
    }

    /// All segments, those of copies included.
    pub(crate) fn all_segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().chain(&self.copies)
    }

    /// The planes of all tiles that were not given back.
    pub(crate) fn planes(&self) -> impl Iterator<Item = &[Plane; 2]> + Clone {
        self.segments.iter().flat_map(Segment::all_planes)
    }

    /// The segment that a tile lies in, and its index there; tiles are counted over the segments.
    pub(crate) fn find_tile(&self, mut tile: usize) -> Option<(usize, usize)> {
        for (index, segment) in self.segments.iter().enumerate() {
            if tile < segment.tiles() {
                return Some((index, tile));
            }
            tile -= segment.tiles();
        }
        None
    }

    /// The planes of a tile with rows, counted over the segments; `None` if there is no such tile, or it was given back.
    pub(crate) fn tile_planes(&self, tile: usize) -> Option<&[Plane; 2]> {
        let (segment, tile) = self.find_tile(tile)?;
        self.segments[segment].planes(tile)
    }

    /// Blocks of the tiles that queries visit.
    pub(crate) fn visited_blocks(&self) -> impl Iterator<Item = Block> + Clone {
        let visited = self.visits.iter().flatten().filter_map(|&tile| self.tile_planes(tile as usize));
        let all = self.visits.is_none().then(|| self.planes());
        let copies = self.visits.is_some().then(|| self.copies.iter().flat_map(Segment::all_planes));
        visited
            .chain(all.into_iter().flatten())
            .chain(copies.into_iter().flatten())
            .flatten()
            .flat_map(Plane::blocks)
    }

    /// True if new rows may be written to a tile: it lies in the growing segment, and is not full.
    pub(crate) fn grows(&self, tile: usize) -> bool {
        let earlier: usize = self.segments.iter().rev().skip(1).map(Segment::tiles).sum();
        tile >= earlier + self.last().end() / TILE_TOKENS
    }

    /// Runs `of` on the part of `rows` that lies in each segment.
    pub(crate) fn for_each_part(&self, rows: Range<usize>, mut of: impl FnMut(&Segment, Range<usize>)) {
        let mut start = 0;
        for segment in &self.segments {
            let end = start + segment.len();
            let part = rows.start.max(start)..rows.end.min(end);
            if !part.is_empty() {
                of(segment, part.start - start..part.end - start);
            }
            start = end;
        }
    }

    /// Keeps the rows that `keep` lists, in rising order.
    pub(crate) fn retain(&mut self, store: &mut KvStore, keep: &[u32]) -> Result<(), CacheError> {
        let (mut start, mut rest) = (0, keep);
        for segment in &mut self.segments {
            let end = start + segment.len() as u32;
            let (part, later) = rest.split_at(rest.partition_point(|&row| row < end));
            let part: Vec<u32> = part.iter().map(|row| row - start).collect();
            segment.retain(store, &part)?;
            (start, rest) = (end, later);
        }
        let growing = self.segments.len() - 1;
        let mut index = 0;
        self.segments.retain(|segment| {
            index += 1;
            index - 1 == growing || !segment.is_empty()
        });
        for column in self.statistics.columns() {
            if !column.is_empty() {
                *column = keep.iter().map(|&row| column[row as usize]).collect();
            }
        }
        Ok(())
    }

    /// Forgets one row; the last row of its segment takes its place.
    pub(crate) fn swap_remove(&mut self, store: &mut KvStore, row: usize) -> Result<(), CacheError> {
        let (index, local) = self.find(row);
        let segment = &mut self.segments[index];
        let last = row - local + segment.len() - 1;
        segment.swap_remove(store, local)?;
        for column in self.statistics.columns() {
            if last < column.len() {
                column[row] = column[last];
                column.remove(last);
            }
        }
        if self.segments[index].is_empty() && index + 1 < self.segments.len() {
            self.segments.remove(index);
        }
        Ok(())
    }

    /// Lets the keys turn as if the rows stood at consecutive positions, in the order of their own ones, the last of them right
    /// before `next`; if they are to stand so.
    pub(crate) fn close_gaps(&mut self, next: u32) {
        let Some(turns) = &self.turns else { return };
        let positions: Vec<u32> = self.segments.iter().flat_map(Segment::positions).collect();
        let mut order: Vec<u32> = (0..positions.len() as u32).collect();
        order.sort_by_key(|&row| positions[row as usize]);
        let first = next.saturating_sub(positions.len() as u32);
        let mut by = vec![0; positions.len()];
        for (place, row) in (first..).zip(order) {
            by[row as usize] = place.saturating_sub(positions[row as usize]);
        }
        let mut rest = &by[..];
        for segment in &mut self.segments {
            let (part, later) = rest.split_at(segment.len());
            segment.set_shifts(turns, part.to_vec());
            rest = later;
        }
    }

    /// Forgets the rows at `position` and later. False if a sliding window has already given back rows before them that are
    /// needed from `needed_from` on.
    pub(crate) fn truncate(&mut self, store: &mut KvStore, position: u32, needed_from: u32) -> bool {
        if self.statistics.columns().iter().any(|column| !column.is_empty()) {
            let stays: Vec<bool> = self
                .segments
                .iter()
                .flat_map(|segment| (0..segment.len()).map(|row| segment.position(row) < position))
                .collect();
            for column in self.statistics.columns() {
                let mut stays = stays.iter();
                column.retain(|_| stays.next().copied().unwrap_or(false));
            }
        }
        self.visits = None;
        let mut whole = true;
        for segment in &mut self.segments {
            whole &= segment.truncate(store, position, needed_from);
        }
        self.close_gaps(position);
        whole
    }

    pub(crate) fn fork(&self, store: &mut KvStore, capacity_tokens: usize) -> Self {
        Self {
            segments: self.segments.iter().map(|segment| segment.fork(store, capacity_tokens)).collect(),
            statistics: self.statistics.clone(),
            visits: None,
            turns: self.turns.clone(),
            copies: self.copies.iter().map(|segment| segment.fork(store, 0)).collect(),
        }
    }
}
