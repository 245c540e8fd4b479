//! A model's tensors, under one set of names.
//!
//! Kvik's architectures know tensors by their GGUF names, `blk.3.attn_q.weight`. For Hugging Face models an architecture
//! brings a table of pairs (`blk.*.attn_q`, `model.layers.*.self_attn.q_proj`), in which `*` stands for the layer.
//! Shapes are checked here, once: a network that was built has weights that fit together.

use std::{cell::Cell, ops::Range, sync::Arc};

use kvik_kernels::{
    ThreadPool,
    matmul::{PackError, PackedMatrix},
    quant::TensorType,
};

use crate::{
    Checkpoint, CheckpointError, Tensor,
    checkpoint::Format,
    layers::{Activation, AttentionParts, GatedMlp, LayerNorm, Linear, QueryKeyNorm, RmsNorm},
    settings::Heads,
};

/// Bytes of a tensor that are packed before their pages are given back.
const RELEASE_BYTES: usize = 4 << 20;

/// A tensor that cannot become a weight.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Missing or unreadable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its shape does not follow from the model's settings.
    #[error(
        "tensor '{name}' has the shape {found:?} where the model's settings ask for {expected:?}; the file is damaged"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape, outermost first.
        found: Vec<usize>,
        /// What was asked for.
        expected: Vec<usize>,
    },
    /// A norm or a bias is quantised.
    #[error("tensor '{name}' is quantised, but norms and biases must be F32, F16 or BF16")]
    Quantised {
        /// The tensor.
        name: String,
    },
    /// It cannot be packed.
    #[error("cannot load tensor '{name}': {source}")]
    Pack {
        /// The tensor.
        name: String,
        /// Why.
        source: PackError,
    },
}

/// Pairs of a GGUF name and its Hugging Face counterpart, without `.weight`.
pub type Names = [(&'static str, &'static str)];

/// Some weights, counted: what they cost to read and to multiply with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightCount {
    /// Bytes in memory.
    pub bytes: usize,
    /// Quantised numbers in matrices.
    pub quantized: usize,
    /// bf16 numbers in matrices.
    pub bf16: usize,
    /// Other floating-point numbers in matrices.
    pub floating: usize,
}

/// The matrices that a forward pass reads in full. Tables of which it takes a row for each token are not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWeights {
    /// Applied to every token.
    pub layers: WeightCount,
    /// The projection to the vocabulary: applied to every token whose logits are wanted.
    pub output: WeightCount,
}

impl WeightCount {
    pub(crate) fn add(&mut self, matrix: &PackedMatrix) {
        self.bytes += matrix.bytes();
        *self.numbers(matrix.ty()) += matrix.out_features() * matrix.in_features();
    }

    pub(crate) fn remove(&mut self, matrix: &PackedMatrix) {
        self.bytes -= matrix.bytes();
        *self.numbers(matrix.ty()) -= matrix.out_features() * matrix.in_features();
    }

    fn numbers(&mut self, ty: TensorType) -> &mut usize {
        match ty {
            TensorType::F32 | TensorType::F16 => &mut self.floating,
            TensorType::BF16 => &mut self.bf16,
            _ => &mut self.quantized,
        }
    }
}

/// The tensors of a model.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    pool: &'a ThreadPool,
    /// What has been loaded so far.
    loaded: &'a Cell<StepWeights>,
    /// `None` for a GGUF file, whose names need no translation.
    names: Option<&'static Names>,
    layer: Option<usize>,
}

impl<'a> Weights<'a> {
    /// The tensors of `checkpoint`, which calls them by the second of each pair of `names` if it is a Hugging Face model.
    /// What is taken from them is counted in `loaded`.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        pool: &'a ThreadPool,
        names: &'static Names,
        loaded: &'a Cell<StepWeights>,
    ) -> Self {
        let names = (!matches!(checkpoint.format(), Format::Gguf { .. })).then_some(names);
        Self { checkpoint, pool, loaded, names, layer: None }
    }

    /// The tensors of block `layer`: names are then taken without `blk.N.`.
    pub fn block(&self, layer: usize) -> Self {
        Self { layer: Some(layer), ..*self }
    }

    /// The file's name for `name`.
    fn full_name(&self, name: &str, suffix: &str) -> String {
        let pattern = if self.layer.is_some() { format!("blk.*.{name}") } else { name.to_owned() };
        let translated = self
            .names
            .and_then(|names| names.iter().find(|(gguf, _)| *gguf == pattern))
            .map_or(pattern.as_str(), |(_, hf)| hf);
        let layer = self.layer.map_or(String::new(), |layer| layer.to_string());
        format!("{}.{suffix}", translated.replace('*', &layer))
    }

    /// Whether there is a weight called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.full_name(name, "weight"))
    }

    /// A projection, with its bias if it has one.
    ///
    /// # Errors
    /// If the weight is missing, or a shape is not the expected one.
    pub fn linear(
        &self,
        name: &str,
        out_features: usize,
        in_features: usize,
    ) -> Result<Linear, WeightsError> {
        self.linear_rows(name, out_features, in_features, std::slice::from_ref(&(0..out_features)))
    }

    /// A projection made of some rows of a larger one of `stored_features`, which the file keeps fused.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn linear_rows(
        &self,
        name: &str,
        stored_features: usize,
        in_features: usize,
        rows: &[Range<usize>],
    ) -> Result<Linear, WeightsError> {
        let linear = self.load(name, stored_features, in_features, rows)?;
        self.count(|loaded| loaded.layers.add(&linear.weight));
        Ok(linear)
    }

    fn load(
        &self,
        name: &str,
        stored_features: usize,
        in_features: usize,
        rows: &[Range<usize>],
    ) -> Result<Linear, WeightsError> {
        let name_in_file = self.full_name(name, "weight");
        let tensor = self.checkpoint.tensor(&name_in_file)?;
        expect_shape(&tensor, &[stored_features, in_features])?;
        let weight = self.pack(&tensor, rows)?;
        let bias = self.find_vector(name, "bias", stored_features)?;
        let bias = bias.map(|bias| rows.iter().flat_map(|rows| &bias[rows.clone()]).copied().collect());
        Ok(Linear { weight, bias })
    }

    fn pack(&self, tensor: &Tensor<'_>, rows: &[Range<usize>]) -> Result<PackedMatrix, WeightsError> {
        let failed = |source| WeightsError::Pack { name: tensor.name.to_owned(), source };
        let out_features = rows.iter().map(|rows| rows.len()).sum();
        let mut packer = PackedMatrix::builder(tensor.ty, out_features, tensor.cols()).map_err(failed)?;
        let piece = (RELEASE_BYTES / tensor.row_bytes().max(1)).max(1);
        for rows in rows {
            for start in rows.clone().step_by(piece) {
                let rows = start..rows.end.min(start + piece);
                packer.push_rows(self.pool, tensor.row_range(rows.clone())).map_err(failed)?;
                self.checkpoint.release(tensor, rows);
            }
        }
        packer.finish().map_err(failed)
    }

    /// The projections of an attention layer that the file keeps apart, with `norm` on queries and keys.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn attention(
        &self,
        hidden: usize,
        heads: &Heads,
        norm: Option<QueryKeyNorm>,
    ) -> Result<AttentionParts, WeightsError> {
        let (q_features, kv_features) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        Ok(AttentionParts {
            query: self.linear("attn_q", q_features, hidden)?,
            key: self.linear("attn_k", kv_features, hidden)?,
            value: self.linear("attn_v", kv_features, hidden)?,
            output: self.linear("attn_output", hidden, q_features)?,
            norm,
        })
    }

    /// A gated feed-forward layer whose projections the file keeps apart.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn gated_mlp(
        &self,
        hidden: usize,
        intermediate: usize,
        activation: Activation,
    ) -> Result<GatedMlp, WeightsError> {
        Ok(GatedMlp {
            gate: self.linear("ffn_gate", intermediate, hidden)?,
            up: self.linear("ffn_up", intermediate, hidden)?,
            down: self.linear("ffn_down", hidden, intermediate)?,
            activation,
        })
    }

    /// A norm without bias.
    ///
    /// # Errors
    /// If the weight is missing, or not of length `features`.
    pub fn rms_norm(&self, name: &str, features: usize, epsilon: f32) -> Result<RmsNorm, WeightsError> {
        Ok(RmsNorm { weight: self.vector(name, "weight", features)?, epsilon })
    }

    /// A norm with bias.
    ///
    /// # Errors
    /// If weight or bias is missing, or not of length `features`.
    pub fn layer_norm(&self, name: &str, features: usize, epsilon: f32) -> Result<LayerNorm, WeightsError> {
        Ok(LayerNorm {
            weight: self.vector(name, "weight", features)?,
            bias: self.vector(name, "bias", features)?,
            epsilon,
        })
    }

    /// A vector of `len` numbers.
    ///
    /// # Errors
    /// If it is missing, quantised, or of another length.
    pub fn vector(&self, name: &str, suffix: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
        let name_in_file = self.full_name(name, suffix);
        let tensor = self.checkpoint.tensor(&name_in_file)?;
        expect_shape(&tensor, &[len])?;
        tensor.to_f32().ok_or(WeightsError::Quantised { name: name_in_file })
    }

    /// A vector that may be missing.
    ///
    /// # Errors
    /// If it is quantised or of another length.
    pub fn find_vector(
        &self,
        name: &str,
        suffix: &str,
        len: usize,
    ) -> Result<Option<Vec<f32>>, WeightsError> {
        let exists = self.checkpoint.contains(&self.full_name(name, suffix));
        exists.then(|| self.vector(name, suffix, len)).transpose()
    }

    /// A table with a row of `features` numbers for each of as many things as the file has: tokens, positions.
    ///
    /// # Errors
    /// If there is no such weight, or its rows are longer or shorter.
    pub fn table(&self, name: &str, features: usize) -> Result<Linear, WeightsError> {
        let rows = self.checkpoint.tensor(&self.full_name(name, "weight"))?.rows();
        self.load(name, rows, features, std::slice::from_ref(&(0..rows)))
    }

    /// The projection to the vocabulary: the tensor `name`, or the embedding's table where the file has no such tensor.
    ///
    /// # Errors
    /// If the tensor's shape is not the table's.
    pub fn output(&self, name: &str, embedding: &Arc<Linear>) -> Result<Arc<Linear>, WeightsError> {
        let output = if self.contains(name) {
            let (rows, features) = (embedding.weight.out_features(), embedding.weight.in_features());
            Arc::new(self.load(name, rows, features, std::slice::from_ref(&(0..rows)))?)
        } else {
            Arc::clone(embedding)
        };
        self.count(|loaded| loaded.output.add(&output.weight));
        Ok(output)
    }

    fn count(&self, add: impl FnOnce(&mut StepWeights)) {
        let mut loaded = self.loaded.get();
        add(&mut loaded);
        self.loaded.set(loaded);
    }
}

fn expect_shape(tensor: &Tensor<'_>, expected: &[usize]) -> Result<(), WeightsError> {
    if tensor.shape == expected && expected.iter().all(|&n| n > 0) {
        return Ok(());
    }
    Err(WeightsError::Shape {
        name: tensor.name.to_owned(),
        found: tensor.shape.to_vec(),
        expected: expected.to_vec(),
    })
}
