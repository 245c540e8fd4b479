//! The observer: a method that changes nothing and writes down what it sees.

use std::sync::{Arc, Mutex, PoisonError};

use kvik_kernels::attention::{ColumnSums, PlaneKind};
use kvik_kv::{CacheError, Evidence, Method, OpenCache, Segment};

use super::record::{Head, Moment, Record, RowKind};

/// Queries at the end of the prompt whose attention the first moment shows.
const WINDOW: usize = 32;

/// Writes the cache down after the prompt and after every decoded token. Stands behind all methods of the pipeline.
pub struct Probe {
    record: Arc<Mutex<Record>>,
}

impl Probe {
    /// A probe that writes to `record`.
    pub fn new(record: Arc<Mutex<Record>>) -> Self {
        Self { record }
    }

    /// Adds a moment; `mass` is what each row of a head was attended with.
    fn write(&self, cache: &OpenCache<'_>, mass: impl Fn(usize) -> Vec<Vec<f32>>) {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut heads = Vec::new();
        let shape = cache.shape();
        for layer in 0..shape.layers.len() {
            let mass = mass(layer);
            for kv_head in 0..shape.layers[layer].kv_heads {
                let mut rows = Vec::new();
                for (index, segment) in cache.segments(layer, kv_head).iter().enumerate() {
                    let first = rows.len();
                    rows.extend((0..segment.len()).map(|row| {
                        let in_file = |plane| !cache.row_in_ram(layer, kv_head, plane, first + row);
                        let kind = record.kind(RowKind {
                            segment: index,
                            keys: encoding(segment, PlaneKind::Keys, row),
                            values: encoding(segment, PlaneKind::Values, row),
                            key_in_file: in_file(PlaneKind::Keys),
                            value_in_file: in_file(PlaneKind::Values),
                        });
                        (segment.position(row), kind)
                    }));
                }
                let mass = mass.get(kv_head).map_or(&[][..], Vec::as_slice);
                heads.push(Head::new(rows, mass));
            }
        }
        let (bytes, file_bytes) = (cache.used_bytes(), cache.file_bytes());
        record.moments.push(Moment { tokens: cache.tokens(), bytes, file_bytes, heads });
    }
}

fn encoding(segment: &Segment, plane: PlaneKind, row: usize) -> String {
    segment.encoding(plane, row).map_or_else(|| "bf16".to_owned(), |codec| codec.name())
}

impl Method for Probe {
    fn evidence(&self) -> Evidence {
        Evidence { window: WINDOW, accumulated: false, step: true }
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        // Rows that methods have dropped are gone already: this is what the prompt's last queries give to those that stay.
        self.write(cache, |layer| cache.window_sums(layer, WINDOW, ColumnSums::Group));
        Ok(())
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let kv_heads = |layer: usize| cache.shape().layers[layer].kv_heads;
        self.write(cache, |layer| {
            (0..kv_heads(layer)).map(|head| cache.statistics(layer, head).step.clone()).collect()
        });
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self { record: Arc::clone(&self.record) })
    }
}
