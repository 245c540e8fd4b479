//! Linear projection.

use kvik_kernels::matmul::{Activations, PackedMatrix, Product, matmul};

use super::{Pass, Rows, Workspace};

/// `y = W x + b`, with the weights packed for the kernels.
pub struct Linear {
    /// `[out_features, in_features]`
    pub weight: PackedMatrix,
    /// `[out_features]`
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Length of a result row.
    pub fn out_features(&self) -> usize {
        self.weight.out_features()
    }

    /// Projection of every row.
    pub fn apply(&self, pass: &mut Pass<'_, '_>, x: &Rows) -> Rows {
        let [out] = Self::apply_all([self], pass, x);
        out
    }

    /// Several projections of the same rows, in one go: the activations are prepared once.
    pub fn apply_all<const N: usize>(layers: [&Self; N], pass: &mut Pass<'_, '_>, x: &Rows) -> [Rows; N] {
        let mut outs = layers.map(|layer| Rows::new(x.rows(), layer.out_features()));
        let mut pairs = layers.iter().zip(&mut outs);
        let mut products: [Product<'_>; N] = std::array::from_fn(|_| {
            let (layer, out) = pairs.next().expect("as many outputs as layers");
            layer.product(out, false)
        });
        pass.multiply(x, &mut products);
        outs
    }

    /// Adds the projection of every row to `sum`.
    pub fn add_to(&self, pass: &mut Pass<'_, '_>, x: &Rows, sum: &mut Rows) {
        pass.multiply(x, &mut [self.product(sum, true)]);
    }

    fn product<'a>(&'a self, out: &'a mut Rows, accumulate: bool) -> Product<'a> {
        Product { weight: &self.weight, bias: self.bias.as_deref(), out, accumulate }
    }
}

impl Pass<'_, '_> {
    /// Prepares `x` for products with `weights`.
    pub(super) fn prepare<'a>(
        &mut self,
        x: &Rows,
        weights: impl IntoIterator<Item = &'a PackedMatrix>,
    ) -> &Activations {
        let Workspace { activations, phases, .. } = &mut *self.workspace;
        activations.set_for(self.pool, x, phases, x.cols(), weights);
        activations
    }

    fn multiply(&mut self, x: &Rows, products: &mut [Product<'_>]) {
        let pool = self.pool;
        let acts = self.prepare(x, products.iter().map(|product| product.weight));
        matmul(pool, acts, products);
    }
}
