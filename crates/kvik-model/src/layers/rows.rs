//! A matrix of activations, one row per token.
//!
//! A forward pass makes and drops the same matrices at every layer of every step. Their memory is therefore recycled:
//! a dropped matrix leaves its storage in a list of the thread's own, and the next one of fitting size takes it. After
//! the first step a pass allocates nothing.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

use kvik_kernels::{ThreadPool, rows::add};

/// Matrices that wait for reuse; a network needs about a dozen at a time.
const MOST_RECYCLED: usize = 32;

thread_local! {
    static RECYCLED: RefCell<Vec<Vec<f32>>> = RefCell::new(Vec::with_capacity(MOST_RECYCLED));
}

/// Activations `[rows, cols]`; dereferences to the numbers, row after row.
#[derive(Debug)]
pub struct Rows {
    storage: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Rows {
    /// A matrix whose content is unspecified.
    pub fn new(rows: usize, cols: usize) -> Self {
        let len = rows * cols;
        let recycled = RECYCLED.with_borrow_mut(|list| {
            let fitting = list.iter().enumerate().filter(|(_, storage)| storage.len() >= len);
            let smallest = fitting.min_by_key(|(_, storage)| storage.len())?.0;
            Some(list.swap_remove(smallest))
        });
        Self { storage: recycled.unwrap_or_else(|| vec![0.0; len]), rows, cols }
    }

    /// A matrix with the same numbers.
    pub fn copy(&self) -> Self {
        let mut copy = Self::new(self.rows, self.cols);
        copy.copy_from_slice(self);
        copy
    }

    /// Number of rows: tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row, `[cols]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..(row + 1) * self.cols]
    }

    /// Runs `task(index, row)` on every row, on all threads when that is worth it.
    pub fn for_each(&mut self, pool: &ThreadPool, task: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = self.cols;
        pool.for_each_row(self, cols, task);
    }

    /// Adds `other`, of the same shape.
    pub fn add(&mut self, pool: &ThreadPool, other: &Self) {
        self.for_each(pool, |index, row| add(row, other.row(index)));
    }
}

impl Deref for Rows {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.storage[..self.rows * self.cols]
    }
}

impl DerefMut for Rows {
    fn deref_mut(&mut self) -> &mut [f32] {
        let len = self.rows * self.cols;
        &mut self.storage[..len]
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        let storage = std::mem::take(&mut self.storage);
        // When the thread is ending its list may be gone already: then the memory is simply freed.
        let _ = RECYCLED.try_with(|list| {
            let mut list = list.borrow_mut();
            if list.len() < MOST_RECYCLED {
                list.push(storage);
            }
        });
    }
}
