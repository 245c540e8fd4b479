//! OPT (Zhang et al. 2022): learned positions, plain multi-head attention with biases, ReLU. The 350M model puts its norms
//! after each part and has embeddings narrower than its hidden state.

use std::sync::Arc;

use super::{Architecture, BuildError, Network};
use crate::{
    layers::{
        Attention, Embedding, LayerNorm, Linear, Mlp, Pass, PositionEmbedding, Rope, Rows, activation_named,
    },
    settings::{Settings, SettingsError},
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "OPT",
    gguf: "opt",
    hugging_face: &["OPTForCausalLM"],
    names: &[
        ("token_embd", "model.decoder.embed_tokens"),
        ("position_embd", "model.decoder.embed_positions"),
        ("project_in", "model.decoder.project_in"),
        ("blk.*.attn_norm", "model.decoder.layers.*.self_attn_layer_norm"),
        ("blk.*.attn_q", "model.decoder.layers.*.self_attn.q_proj"),
        ("blk.*.attn_k", "model.decoder.layers.*.self_attn.k_proj"),
        ("blk.*.attn_v", "model.decoder.layers.*.self_attn.v_proj"),
        ("blk.*.attn_output", "model.decoder.layers.*.self_attn.out_proj"),
        ("blk.*.ffn_norm", "model.decoder.layers.*.final_layer_norm"),
        ("blk.*.ffn_up", "model.decoder.layers.*.fc1"),
        ("blk.*.ffn_down", "model.decoder.layers.*.fc2"),
        ("output_norm", "model.decoder.final_layer_norm"),
        ("project_out", "model.decoder.project_out"),
        ("output", "lm_head"),
    ],
    build: |settings, weights| Ok(Box::new(Opt::build(settings, weights)?)),
};

/// Rows that the table of positions has before position 0, a leftover of padding in the original training code.
const POSITION_OFFSET: usize = 2;

/// PyTorch's default, which OPT's configuration does not name.
const NORM_EPSILON: f32 = 1e-5;

struct Opt {
    embedding: Embedding,
    positions: PositionEmbedding,
    project_in: Option<Linear>,
    blocks: Vec<Block>,
    /// Norms stand before each part (all models but 350M) or after its addition to the stream.
    norm_before: bool,
    norm: Option<LayerNorm>,
    project_out: Option<Linear>,
    output: Arc<Linear>,
}

struct Block {
    attention_norm: LayerNorm,
    attention: Attention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl Network for Opt {
    fn forward(&self, pass: &mut Pass<'_, '_>) -> Rows {
        let mut x = self.embedding.apply(pass);
        if let Some(project_in) = &self.project_in {
            x = project_in.apply(pass, &x);
        }
        self.positions.add_to(pass, &mut x);
        for block in &self.blocks {
            if self.norm_before {
                let h = block.attention_norm.apply(pass, &x);
                block.attention.add_to(pass, &h, None, &mut x);
                let h = block.mlp_norm.apply(pass, &x);
                block.mlp.add_to(pass, &h, &mut x);
            } else {
                let h = block.attention.apply(pass, &x, None);
                x.add(pass.pool, &h);
                x = block.attention_norm.apply(pass, &x);
                let mut sum = x.copy();
                block.mlp.add_to(pass, &x, &mut sum);
                x = block.mlp_norm.apply(pass, &sum);
            }
        }
        let mut h = pass.logit_rows(&x);
        if let Some(norm) = &self.norm {
            h = norm.apply(pass, &h);
        }
        if let Some(project_out) = &self.project_out {
            h = project_out.apply(pass, &h);
        }
        h
    }

    fn output(&self) -> &Linear {
        &self.output
    }

    fn attention_layers(&self) -> Vec<&Attention> {
        self.blocks.iter().map(|block| &block.attention).collect()
    }

    fn attention_layers_mut(&mut self) -> Vec<&mut Attention> {
        self.blocks.iter_mut().map(|block| &mut block.attention).collect()
    }

    fn rope(&self, _layer: usize) -> Option<&Rope> {
        None
    }

    fn position_limit(&self) -> Option<usize> {
        Some(self.positions.positions())
    }
}

impl Opt {
    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "ffn_dim")?;
        let embedded = settings.find_count("", "word_embed_proj_dim")?.unwrap_or(hidden);
        let norm_before = settings.find("", "do_layer_norm_before")?.unwrap_or(true);
        let heads = settings.heads()?;
        let name = settings.find("", "activation_function")?.unwrap_or("relu");
        let activation = activation_named(name)
            .ok_or_else(|| SettingsError::Unknown { name: "activation".into(), value: name.into() })?;

        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let parts = weights.attention(hidden, &heads, None)?;
            Ok(Block {
                attention_norm: weights.layer_norm("attn_norm", hidden, NORM_EPSILON)?,
                attention: Attention::new(layer, parts, heads.head_dim, heads.scale(), None),
                mlp_norm: weights.layer_norm("ffn_norm", hidden, NORM_EPSILON)?,
                mlp: Mlp {
                    up: weights.linear("ffn_up", intermediate, hidden)?,
                    down: weights.linear("ffn_down", hidden, intermediate)?,
                    activation,
                },
            })
        };

        let projection =
            |name, out, input| (embedded != hidden).then(|| weights.linear(name, out, input)).transpose();
        let has_norm = weights.contains("output_norm");
        let table = Arc::new(weights.table("token_embd", embedded)?);
        Ok(Self {
            positions: PositionEmbedding {
                table: weights.table("position_embd", hidden)?,
                offset: POSITION_OFFSET,
            },
            project_in: projection("project_in", hidden, embedded)?,
            blocks: (0..settings.count("block_count", "num_hidden_layers")?)
                .map(block)
                .collect::<Result<_, _>>()?,
            norm_before,
            norm: has_norm.then(|| weights.layer_norm("output_norm", hidden, NORM_EPSILON)).transpose()?,
            project_out: projection("project_out", embedded, hidden)?,
            output: weights.output("output", &table)?,
            embedding: Embedding { table, scale: 1.0 },
        })
    }
}
