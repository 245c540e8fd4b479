//! What is known of each row of a segment, beside its key and value.

use std::sync::Arc;

use kvik_kernels::attention::{TILE_TOKENS, Turns};

/// Magnitudes of rows whose planes hold directions.
#[derive(Clone, Debug, Default)]
pub struct Magnitudes {
    /// Per row, padded to whole tiles.
    pub(crate) keys: Vec<f32>,
    /// Per row, padded to whole tiles.
    pub(crate) values: Vec<f32>,
}

/// By how many positions keys turn beyond their own when they are read.
#[derive(Clone)]
pub(crate) struct Shifts {
    pub(crate) turns: Arc<Turns>,
    /// Per row, padded to whole tiles.
    pub(crate) by: Vec<u32>,
}

/// Where the rows of a segment stand in the sequence.
#[derive(Clone)]
pub(crate) enum RowPositions {
    /// Consecutive, from this one on.
    From(u32),
    /// One per row, padded to whole tiles.
    Each(Vec<u32>),
}

/// The columns of a segment's rows.
#[derive(Clone)]
pub(crate) struct Columns {
    pub(crate) positions: RowPositions,
    /// Per row, padded to whole tiles.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) magnitudes: Option<Magnitudes>,
    pub(crate) shifts: Option<Shifts>,
}

impl Columns {
    /// Those of rows at consecutive positions.
    pub(crate) fn from(position: u32) -> Self {
        Self { positions: RowPositions::From(position), bias: None, magnitudes: None, shifts: None }
    }

    /// Gives each of the first `len` rows its own position.
    pub(crate) fn set_positions(&mut self, len: usize, mut positions: Vec<u32>) {
        positions.resize(len.next_multiple_of(TILE_TOKENS), u32::MAX);
        self.positions = RowPositions::Each(positions);
    }

    /// Adds rows behind the first `len`, the first of them at `position`.
    pub(crate) fn grow(&mut self, len: usize, rows: usize, position: u32) {
        let padded = (len + rows).next_multiple_of(TILE_TOKENS);
        match &mut self.positions {
            RowPositions::From(start) if len == 0 => *start = position,
            RowPositions::From(start) => debug_assert_eq!(*start + len as u32, position),
            RowPositions::Each(positions) => {
                positions.resize(padded, u32::MAX);
                for (row, slot) in positions[len..][..rows].iter_mut().enumerate() {
                    *slot = position + row as u32;
                }
            }
        }
        self.pad(padded);
    }

    /// Keeps the rows that `keep` lists, in this order.
    pub(crate) fn retain(&mut self, keep: &[u32]) {
        let padded = keep.len().next_multiple_of(TILE_TOKENS);
        let positions = keep.iter().map(|&row| self.position(row as usize)).collect();
        let gather = |column: &mut Vec<f32>| *column = keep.iter().map(|&row| column[row as usize]).collect();
        self.numbers().for_each(gather);
        if let Some(Shifts { by, .. }) = &mut self.shifts {
            *by = keep.iter().map(|&row| by[row as usize]).collect();
        }
        self.set_positions(keep.len(), positions);
        self.pad(padded);
    }

    /// Parts with the first `rows` rows, which fill their tiles.
    pub(crate) fn split_front(&mut self, rows: usize) -> Self {
        let positions = match &mut self.positions {
            RowPositions::From(position) => {
                let front = RowPositions::From(*position);
                *position += rows as u32;
                front
            }
            RowPositions::Each(positions) => RowPositions::Each(front_of(positions, rows)),
        };
        let bias = self.bias.as_mut().map(|bias| front_of(bias, rows));
        let magnitudes = self.magnitudes.as_mut().map(|magnitudes| Magnitudes {
            keys: front_of(&mut magnitudes.keys, rows),
            values: front_of(&mut magnitudes.values, rows),
        });
        let shifts = self
            .shifts
            .as_mut()
            .map(|shifts| Shifts { turns: Arc::clone(&shifts.turns), by: front_of(&mut shifts.by, rows) });
        Self { positions, bias, magnitudes, shifts }
    }

    /// Puts row `last` in the place of `row`; of `len` rows.
    pub(crate) fn replace(&mut self, len: usize, row: usize, last: usize) {
        if let RowPositions::From(start) = self.positions {
            self.set_positions(len, (0..len as u32).map(|row| start + row).collect());
        }
        if let RowPositions::Each(positions) = &mut self.positions {
            positions[row] = positions[last];
        }
        self.numbers().for_each(|column| column[row] = column[last]);
        if let Some(Shifts { by, .. }) = &mut self.shifts {
            by[row] = by[last];
        }
    }

    /// Forgets all rows from row `len` on.
    pub(crate) fn cut(&mut self, len: usize) {
        let padded = len.next_multiple_of(TILE_TOKENS);
        if let RowPositions::Each(positions) = &mut self.positions {
            positions.truncate(len);
            positions.resize(padded, u32::MAX);
        }
        self.numbers().for_each(|column| column.truncate(len));
        if let Some(Shifts { by, .. }) = &mut self.shifts {
            by.truncate(len);
        }
        self.pad(padded);
    }

    pub(crate) fn position(&self, row: usize) -> u32 {
        match &self.positions {
            RowPositions::From(start) => start + row as u32,
            RowPositions::Each(positions) => positions[row],
        }
    }

    /// Bytes of the columns.
    pub(crate) fn bytes(&self) -> usize {
        let positions = match &self.positions {
            RowPositions::From(_) => 0,
            RowPositions::Each(positions) => positions.len(),
        };
        let bias = self.bias.as_ref().map_or(0, Vec::len);
        let magnitudes = self.magnitudes.as_ref().map_or(0, |m| m.keys.len() + m.values.len());
        let shifts = self.shifts.as_ref().map_or(0, |shifts| shifts.by.len());
        4 * (positions + bias + magnitudes + shifts)
    }

    /// Gives rows that have nothing to say yet what changes nothing.
    fn pad(&mut self, padded: usize) {
        if let Some(bias) = &mut self.bias {
            bias.resize(padded, 0.0);
        }
        if let Some(Magnitudes { keys, values }) = &mut self.magnitudes {
            keys.resize(padded, 1.0);
            values.resize(padded, 1.0);
        }
        if let Some(Shifts { by, .. }) = &mut self.shifts {
            by.resize(padded, 0);
        }
    }

    /// The columns of numbers that there are.
    fn numbers(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let magnitudes = self.magnitudes.as_mut().map(|m| [&mut m.keys, &mut m.values]);
        self.bias.as_mut().into_iter().chain(magnitudes.into_iter().flatten())
    }
}

/// The first `rows` of a column, taken out of it.
fn front_of<T>(column: &mut Vec<T>, rows: usize) -> Vec<T> {
    let rest = column.split_off(rows);
    std::mem::replace(column, rest)
}
