//! Token and position embeddings, and the projection to the vocabulary.

use std::sync::Arc;

use kvik_kernels::rows::{add, scale};

use super::{Linear, Pass, Rows};

/// A table with a row for each token. It may be shared with the output projection, hence the packed form.
pub struct Embedding {
    /// `[vocabulary, hidden]`
    pub table: Arc<Linear>,
    /// Factor on every embedding; 1 for most models.
    pub scale: f32,
}

impl Embedding {
    /// Embeddings of the pass's tokens.
    pub fn apply(&self, pass: &Pass<'_, '_>) -> Rows {
        let mut out = Rows::new(pass.rows(), self.table.weight.in_features());
        let tokens = pass.tokens();
        out.for_each(pass.pool, |index, row| {
            self.table.weight.dequantize_row(tokens[index] as usize, row);
            if self.scale != 1.0 {
                scale(row, self.scale);
            }
        });
        out
    }
}

/// Learned embeddings of positions.
pub struct PositionEmbedding {
    /// `[positions, hidden]`
    pub table: Linear,
    /// Row of position 0.
    pub offset: usize,
}

impl PositionEmbedding {
    /// Positions that the table covers.
    pub fn positions(&self) -> usize {
        self.table.out_features().saturating_sub(self.offset)
    }

    /// Adds to each row of `x` the embedding of its position.
    pub fn add_to(&self, pass: &Pass<'_, '_>, x: &mut Rows) {
        let positions = pass.positions();
        x.for_each(pass.pool, |index, row| {
            let mut embedding = Rows::new(1, row.len());
            self.table.weight.dequantize_row(positions[index] as usize + self.offset, &mut embedding);
            add(row, &embedding);
        });
    }
}
