//! Llama's forward pass on frozen weights, in f32, over tensors that gradients can flow through.
//!
//! Weights are dequantised constants: no gradient is computed for them, and none is kept. Hidden states are tracked by the
//! autograd library as soon as something tracked is mixed into them, and are plain tensors until then.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData, activation};
use kvik_kernels::{
    ThreadPool,
    attention::{AttentionShape, PairLayout, Rotary},
};
use kvik_model::{
    Checkpoint,
    architectures::llama::{Block, Llama},
    find_architecture,
    layers::{GatedMlp, Linear, RmsNorm},
};

use crate::TrainError;

/// What is added to a score that a query must not see: far below every score, and finite, so that a row without any visible key
/// is no division by zero.
const HIDDEN: f32 = -1e30;

/// A Llama whose weights are constants.
pub struct FrozenLlama {
    /// `[vocabulary, hidden]`
    embedding: Arc<Linear>,
    blocks: Vec<FrozenBlock>,
    norm: Norm,
    rotary: Rotary,
    shape: AttentionShape,
    device: Device,
}

impl FrozenLlama {
    /// Reads the model in `checkpoint`.
    ///
    /// # Errors
    /// [`TrainError`] if it is damaged, of another architecture than Llama's, or sees a sliding window only.
    pub fn load(checkpoint: &Checkpoint, pool: &ThreadPool) -> Result<Self, TrainError> {
        let (architecture, _) = find_architecture(checkpoint)?;
        if architecture.name != "Llama" {
            return Err(TrainError::OtherArchitecture(architecture.name));
        }
        let model = Llama::load(checkpoint, pool)?;
        if model.blocks.iter().any(|block| block.attention.is_windowed()) {
            return Err(TrainError::Windowed);
        }
        let (device, rotary) = (Device::flex(), model.rope.rotary());
        Ok(Self {
            blocks: model.blocks.iter().map(|block| FrozenBlock::new(block, rotary, &device)).collect(),
            norm: Norm::new(&model.norm, &device),
            rotary: rotary.clone(),
            shape: *model.blocks[0].attention.shape(),
            embedding: model.embedding.table,
            device,
        })
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// KV heads of a layer.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Query heads that share a KV head.
    pub fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Length of a head's query, key or value.
    pub fn head_dim(&self) -> usize {
        self.shape.tile.key_dim
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Final hidden states of `tokens`, `[tokens, hidden]`, after the last norm. In each layer `attend` gets the layer's number and
    /// what its heads read under `mask`, `[tokens, heads × head_dim]`, and says what the layer goes on with.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or the mask is for another number of tokens.
    pub fn hidden_states(
        &self,
        tokens: &[u32],
        mask: &Mask,
        mut attend: impl FnMut(usize, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let angles = Angles::new(&self.rotary, tokens.len(), &self.device);
        let mut x = self.embed(tokens);
        for (layer, block) in self.blocks.iter().enumerate() {
            let attended = block.attended(x.clone(), &angles, mask);
            x = block.go_on(x, attend(layer, attended));
        }
        self.norm.apply(x)
    }

    fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        let table = &self.embedding.weight;
        let mut rows = vec![0.0; tokens.len() * table.in_features()];
        for (row, &token) in rows.chunks_mut(table.in_features()).zip(tokens) {
            table.dequantize_row(token as usize, row);
        }
        Tensor::from_data(TensorData::new(rows, [tokens.len(), table.in_features()]), &self.device)
    }
}

/// Which keys a query sees: 0 where it does, far below zero where it does not, `[1, 1, queries, keys]`.
pub struct Mask(Tensor<4>);

impl Mask {
    /// Every query sees all keys up to its own.
    pub fn causal(tokens: usize, device: &Device) -> Self {
        Self::new(tokens, device, |_, _| true)
    }

    /// Every query sees the first `sink` keys and the last `recent` up to its own, which counts.
    pub fn streaming(tokens: usize, sink: usize, recent: usize, device: &Device) -> Self {
        Self::new(tokens, device, |query, key| key < sink || query - key < recent)
    }

    fn new(tokens: usize, device: &Device, sees: impl Fn(usize, usize) -> bool) -> Self {
        let visible = |query: usize, key: usize| key <= query && sees(query, key);
        let numbers: Vec<f32> = (0..tokens * tokens)
            .map(|index| if visible(index / tokens, index % tokens) { 0.0 } else { HIDDEN })
            .collect();
        Self(Tensor::from_data(TensorData::new(numbers, [1, 1, tokens, tokens]), device))
    }
}

/// A layer.
struct FrozenBlock {
    attention_norm: Norm,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    mlp_norm: Norm,
    mlp: Mlp,
    shape: AttentionShape,
}

impl FrozenBlock {
    fn new(block: &Block, rotary: &Rotary, device: &Device) -> Self {
        let (parts, shape) = (block.attention.parts(), *block.attention.shape());
        let order = turning_order(rotary, shape.tile.key_dim);
        Self {
            attention_norm: Norm::new(&block.attention_norm, device),
            query: Projection::of_heads(&parts.query, &order, shape.scale, device),
            key: Projection::of_heads(&parts.key, &order, 1.0, device),
            value: Projection::new(&parts.value, device),
            output: Projection::new(&parts.output, device),
            mlp_norm: Norm::new(&block.mlp_norm, device),
            mlp: Mlp::new(&block.mlp, device),
            shape,
        }
    }

    /// What the heads read, `[tokens, heads × head_dim]`.
    fn attended(&self, x: Tensor<2>, angles: &Angles, mask: &Mask) -> Tensor<2> {
        let AttentionShape { heads, kv_heads, tile, .. } = self.shape;
        let (tokens, head_dim, group) = (x.dims()[0], tile.key_dim, heads / kv_heads);
        let h = self.attention_norm.apply(x);
        let of_heads = |x: Tensor<2>, heads| x.reshape([tokens, heads, head_dim]).swap_dims(0, 1);
        let queries = angles.rotate(of_heads(self.query.apply(h.clone()), heads));
        let keys = angles.rotate(of_heads(self.key.apply(h.clone()), kv_heads));
        let values = of_heads(self.value.apply(h), kv_heads);
        let scores = queries.reshape([kv_heads, group * tokens, head_dim]).matmul(keys.swap_dims(1, 2));
        let scores = scores.reshape([kv_heads, group, tokens, tokens]) + mask.0.clone();
        let shares = activation::softmax(scores, 3).reshape([kv_heads, group * tokens, tokens]);
        let attended = shares.matmul(values).reshape([heads, tokens, head_dim]);
        attended.swap_dims(0, 1).reshape([tokens, heads * head_dim])
    }

    /// The layer's result, given what its heads read.
    fn go_on(&self, x: Tensor<2>, attended: Tensor<2>) -> Tensor<2> {
        let x = x + self.output.apply(attended);
        let h = self.mlp_norm.apply(x.clone());
        x + self.mlp.apply(h)
    }
}

/// The dims of a head in the order in which [`Angles::rotate`] wants them: the first of each pair, the second of each pair, and
/// those that do not turn. Scores stay the same when queries and keys are reordered alike.
fn turning_order(rotary: &Rotary, head_dim: usize) -> Vec<usize> {
    let pairs = rotary.frequencies.len();
    let dim = |pair, second| match rotary.layout {
        PairLayout::Halves => pair + second * pairs,
        PairLayout::Neighbours => 2 * pair + second,
    };
    let turning = (0..2 * pairs).map(|index| dim(index % pairs, index / pairs));
    turning.chain(2 * pairs..head_dim).collect()
}

/// Cosines and sines of all positions, `[1, tokens, pairs]`.
struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Angles {
    fn new(rotary: &Rotary, tokens: usize, device: &Device) -> Self {
        let pairs = rotary.frequencies.len();
        let angles = (0..tokens * pairs).map(|index| rotary.angle((index / pairs) as u32, index % pairs));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.unzip();
        let table = |numbers| Tensor::from_data(TensorData::new(numbers, [1, tokens, pairs]), device);
        Self { cos: table(cos), sin: table(sin) }
    }

    /// Turns heads, `[heads, tokens, head_dim]`, whose dims are in turning order.
    fn rotate(&self, x: Tensor<3>) -> Tensor<3> {
        let (pairs, head_dim) = (self.cos.dims()[2], x.dims()[2]);
        let first = x.clone().narrow(2, 0, pairs);
        let second = x.clone().narrow(2, pairs, pairs);
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let mut parts =
            vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
        if 2 * pairs < head_dim {
            parts.push(x.narrow(2, 2 * pairs, head_dim - 2 * pairs));
        }
        Tensor::cat(parts, 2)
    }
}

/// `y = x Wᵀ + b`
struct Projection {
    /// `[in_features, out_features]`, a view of the rows as the file has them.
    weight: Tensor<2>,
    /// `[1, out_features]`
    bias: Option<Tensor<2>>,
}

impl Projection {
    fn new(linear: &Linear, device: &Device) -> Self {
        Self::of_rows(linear, |row| row, 1.0, device)
    }

    /// A projection to heads whose dims come in the given order, times `scale`.
    fn of_heads(linear: &Linear, order: &[usize], scale: f32, device: &Device) -> Self {
        let head_dim = order.len();
        Self::of_rows(linear, |row| row / head_dim * head_dim + order[row % head_dim], scale, device)
    }

    /// A projection whose row `i` is the file's row `source(i)`, times `scale`.
    fn of_rows(linear: &Linear, source: impl Fn(usize) -> usize, scale: f32, device: &Device) -> Self {
        let (rows, columns) = (linear.weight.out_features(), linear.weight.in_features());
        let mut numbers = vec![0.0; rows * columns];
        for (row, numbers) in numbers.chunks_mut(columns).enumerate() {
            linear.weight.dequantize_row(source(row), numbers);
        }
        let tensor = |numbers: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(numbers, shape), device) * scale
        };
        let bias = linear.bias.as_ref().map(|bias| (0..rows).map(|row| bias[source(row)]).collect());
        Self {
            weight: tensor(numbers, [rows, columns]).transpose(),
            bias: bias.map(|bias| tensor(bias, [1, rows])),
        }
    }

    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let y = x.matmul(self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }
}

/// `down(silu(gate x) · up x)`
struct Mlp {
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl Mlp {
    fn new(mlp: &GatedMlp, device: &Device) -> Self {
        Self {
            gate: Projection::new(&mlp.gate, device),
            up: Projection::new(&mlp.up, device),
            down: Projection::new(&mlp.down, device),
        }
    }

    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.apply(activation::silu(self.gate.apply(x.clone())) * self.up.apply(x))
    }
}

/// Root-mean-square norm.
struct Norm {
    /// `[1, features]`
    weight: Tensor<2>,
    epsilon: f32,
}

impl Norm {
    fn new(norm: &RmsNorm, device: &Device) -> Self {
        let shape = [1, norm.weight.len()];
        let weight = Tensor::from_data(TensorData::new(norm.weight.clone(), shape), device);
        Self { weight, epsilon: norm.epsilon }
    }

    fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let size = (x.clone().square().mean_dim(1) + self.epsilon).sqrt();
        x / size * self.weight.clone()
    }
}
