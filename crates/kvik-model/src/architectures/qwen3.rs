//! Qwen3 (Yang et al. 2025), dense: Llama with norms on every query and key head, whose size is a setting of its own.

use std::sync::Arc;

use super::{Architecture, BuildError, Network};
use crate::{
    layers::{
        Activation, Attention, Embedding, GatedMlp, Linear, PairLayout, Pass, QueryKeyNorm, RmsNorm, Rope,
        Rows,
    },
    settings::{LayerWindows, Settings},
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "Qwen3",
    gguf: "qwen3",
    hugging_face: &["Qwen3ForCausalLM"],
    names: &[
        ("token_embd", "model.embed_tokens"),
        ("blk.*.attn_norm", "model.layers.*.input_layernorm"),
        ("blk.*.attn_q", "model.layers.*.self_attn.q_proj"),
        ("blk.*.attn_k", "model.layers.*.self_attn.k_proj"),
        ("blk.*.attn_v", "model.layers.*.self_attn.v_proj"),
        ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm"),
        ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm"),
        ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
        ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
        ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj"),
        ("blk.*.ffn_up", "model.layers.*.mlp.up_proj"),
        ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    build: |settings, weights| Ok(Box::new(Qwen3::build(settings, weights)?)),
};

struct Qwen3 {
    embedding: Embedding,
    rope: Rope,
    blocks: Vec<Block>,
    norm: RmsNorm,
    output: Arc<Linear>,
}

struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

impl Network for Qwen3 {
    fn forward(&self, pass: &mut Pass<'_, '_>) -> Rows {
        let angles = self.rope.angles(pass);
        let mut x = self.embedding.apply(pass);
        for block in &self.blocks {
            let h = block.attention_norm.apply(pass, &x);
            block.attention.add_to(pass, &h, Some(&angles), &mut x);

            let h = block.mlp_norm.apply(pass, &x);
            block.mlp.add_to(pass, &h, &mut x);
        }
        let x = pass.logit_rows(&x);
        self.norm.apply(pass, &x)
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
        Some(&self.rope)
    }
}

impl Qwen3 {
    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "intermediate_size")?;
        let epsilon = settings.positive("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
        let heads = settings.heads()?;

        let rope = settings.rope(heads.head_dim, PairLayout::Halves, None)?;
        let windows = LayerWindows::from_settings(settings)?;

        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let norm = QueryKeyNorm {
                query: weights.rms_norm("attn_q_norm", heads.head_dim, epsilon)?,
                key: weights.rms_norm("attn_k_norm", heads.head_dim, epsilon)?,
            };
            let parts = weights.attention(hidden, &heads, Some(norm))?;
            Ok(Block {
                attention_norm: weights.rms_norm("attn_norm", hidden, epsilon)?,
                attention: Attention::new(layer, parts, heads.head_dim, heads.scale(), windows.of(layer)),
                mlp_norm: weights.rms_norm("ffn_norm", hidden, epsilon)?,
                mlp: weights.gated_mlp(hidden, intermediate, Activation::Silu)?,
            })
        };

        let table = Arc::new(weights.table("token_embd", hidden)?);
        Ok(Self {
            rope: Rope::new(&rope, settings.context_tokens),
            blocks: (0..settings.count("block_count", "num_hidden_layers")?)
                .map(block)
                .collect::<Result<_, _>>()?,
            norm: weights.rms_norm("output_norm", hidden, epsilon)?,
            output: weights.output("output", &table)?,
            embedding: Embedding { table, scale: 1.0 },
        })
    }
}
