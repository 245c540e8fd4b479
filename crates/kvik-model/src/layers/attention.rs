//! Self-attention over the cache.

use std::thread;

use kvik_kernels::{
    ThreadPool,
    attention::{AttentionShape, Reach, TileShape},
    matmul::{PackError, PackedMatrix},
    quant::TensorType,
};
use kvik_kv::{LayerShape, ValueBasis};

use super::{Angles, Linear, Pass, RmsNorm, Rows};

/// Norms on queries and keys, applied head by head before rotation.
pub struct QueryKeyNorm {
    /// On queries.
    pub query: RmsNorm,
    /// On keys.
    pub key: RmsNorm,
}

/// What an attention layer is made of.
pub struct AttentionParts {
    /// Hidden to `heads × head_dim`.
    pub query: Linear,
    /// Hidden to `kv_heads × head_dim`.
    pub key: Linear,
    /// Hidden to `kv_heads × head_dim`.
    pub value: Linear,
    /// `heads × head_dim` to hidden.
    pub output: Linear,
    /// Norms on queries and keys, for the models that have them.
    pub norm: Option<QueryKeyNorm>,
}

/// Multi-head attention with shared KV heads, over one layer of the cache.
pub struct Attention {
    layer: usize,
    parts: AttentionParts,
    shape: AttentionShape,
}

impl Attention {
    /// Attention at cache layer `layer` with heads of `head_dim`, scores times `scale`, and a sliding `window` of so
    /// many positions if any.
    pub fn new(
        layer: usize,
        parts: AttentionParts,
        head_dim: usize,
        scale: f32,
        window: Option<usize>,
    ) -> Self {
        let shape = AttentionShape {
            heads: parts.query.out_features() / head_dim,
            kv_heads: parts.key.out_features() / head_dim,
            tile: TileShape { key_dim: head_dim, value_dim: head_dim },
            scale,
            reach: Reach { causal: true, window: window.map(|window| window.min(u32::MAX as usize) as u32) },
        };
        Self { layer, parts, shape }
    }

    /// Its projections.
    pub fn parts(&self) -> &AttentionParts {
        &self.parts
    }

    /// Heads and dimensions.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// True if queries see a sliding window only.
    pub fn is_windowed(&self) -> bool {
        self.shape.reach.window.is_some()
    }

    /// What the layer caches.
    pub fn cache_shape(&self) -> LayerShape {
        LayerShape {
            kv_heads: self.shape.kv_heads,
            key_dim: self.shape.tile.key_dim,
            value_dim: self.shape.tile.value_dim,
            window: self.shape.reach.window.map(|window| window as usize),
        }
    }

    /// Result for every token; queries and keys turn by `angles` if there are any.
    pub fn apply(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>) -> Rows {
        let attended = self.attended(pass, x, angles);
        self.parts.output.apply(pass, &attended)
    }

    /// Adds the result for every token to `sum`.
    pub fn add_to(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>, sum: &mut Rows) {
        let attended = self.attended(pass, x, angles);
        self.parts.output.add_to(pass, &attended, sum);
    }

    /// The projections that a basis of values is built into.
    pub fn value_weights(&self) -> [&PackedMatrix; 2] {
        [&self.parts.value.weight, &self.parts.output.weight]
    }

    /// Builds another basis of the values of each KV head into the projections before and after attention, which become F16.
    ///
    /// # Errors
    /// [`PackError`] if there is no memory.
    ///
    /// # Panics
    /// If there is not one basis for each KV head, all of one `dim`, made for this layer's values.
    pub fn change_value_bases(&mut self, pool: &ThreadPool, bases: &[ValueBasis]) -> Result<(), PackError> {
        let AttentionShape { heads, kv_heads, tile, .. } = self.shape;
        let (from, to) = (tile.value_dim, bases[0].dim);
        assert_eq!(bases.len(), kv_heads);
        for basis in bases {
            assert_eq!((basis.dim, basis.into.len(), basis.back.len()), (to, to * from, from * to));
        }
        let Linear { weight, bias } = &self.parts.value;
        let hidden = weight.in_features();
        let rows = dequantize(pool, weight);
        let mut changed = vec![0.0; kv_heads * to * hidden];
        for (index, out) in changed.chunks_mut(hidden).enumerate() {
            let (head, row) = (index / to, index % to);
            for (column, &factor) in bases[head].into[row * from..][..from].iter().enumerate() {
                add_scaled(out, factor, &rows[(head * from + column) * hidden..][..hidden]);
            }
        }
        let bias = bias.as_ref().map(|bias| {
            let heads = bias.chunks(from).zip(bases);
            heads
                .flat_map(|(bias, basis)| {
                    basis.into.chunks(from).map(|row| dot(row, bias)).collect::<Vec<_>>()
                })
                .collect()
        });
        let value = Linear { weight: pack(pool, &changed, hidden)?, bias };

        let rows = dequantize(pool, &self.parts.output.weight);
        let mut changed = vec![0.0; rows.len() / from * to];
        let rows_of_thread = (rows.len() / (heads * from)).div_ceil(pool.threads());
        thread::scope(|scope| {
            let parts = rows.chunks(rows_of_thread * heads * from);
            for (rows, changed) in parts.zip(changed.chunks_mut(rows_of_thread * heads * to)) {
                scope.spawn(move || {
                    for (index, (head, out)) in rows.chunks(from).zip(changed.chunks_mut(to)).enumerate() {
                        let basis = &bases[index % heads / (heads / kv_heads)];
                        for (&factor, row) in head.iter().zip(basis.back.chunks(to)) {
                            add_scaled(out, factor, row);
                        }
                    }
                });
            }
        });
        self.parts.output.weight = pack(pool, &changed, heads * to)?;
        self.parts.value = value;
        self.shape.tile.value_dim = to;
        Ok(())
    }

    fn attended(&self, pass: &mut Pass<'_, '_>, x: &Rows, angles: Option<&Angles>) -> Rows {
        let AttentionParts { query, key, value, norm, .. } = &self.parts;
        let [mut q, mut k, v] = Linear::apply_all([query, key, value], pass, x);
        if let Some(norm) = norm {
            q = norm.query.apply_to_heads(pass, &q);
            k = norm.key.apply_to_heads(pass, &k);
        }
        if let Some(angles) = angles {
            angles.rotate(pass, &mut q, self.shape.tile.key_dim);
            angles.rotate(pass, &mut k, self.shape.tile.key_dim);
        }
        pass.attend(self.layer, &self.shape, &q, &k, &v)
    }
}

/// All rows of a matrix, `[out_features, in_features]`.
fn dequantize(pool: &ThreadPool, matrix: &PackedMatrix) -> Vec<f32> {
    let (rows, columns) = (matrix.out_features(), matrix.in_features());
    let mut numbers = vec![0.0; rows * columns];
    let rows_of_thread = rows.div_ceil(pool.threads());
    thread::scope(|scope| {
        for (part, numbers) in numbers.chunks_mut(rows_of_thread * columns).enumerate() {
            scope.spawn(move || {
                for (row, numbers) in numbers.chunks_mut(columns).enumerate() {
                    matrix.dequantize_row(part * rows_of_thread + row, numbers);
                }
            });
        }
    });
    numbers
}

/// A matrix with rows of `columns` numbers, in F16: they are exact to a 2048th.
fn pack(pool: &ThreadPool, numbers: &[f32], columns: usize) -> Result<PackedMatrix, PackError> {
    let bytes: Vec<u8> =
        numbers.iter().flat_map(|&number| half::f16::from_f32(number).to_le_bytes()).collect();
    PackedMatrix::pack(pool, TensorType::F16, numbers.len() / columns, columns, &bytes)
}

fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) {
    out.iter_mut().zip(row).for_each(|(out, x)| *out += factor * x);
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
