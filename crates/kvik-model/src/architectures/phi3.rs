//! Phi-3 (Abdin et al. 2024): Llama with Q, K and V in one tensor, gate and up in another, and LongRoPE.

use std::sync::Arc;

use super::{Architecture, BuildError, Network};
use crate::{
    layers::{
        Activation, Attention, AttentionParts, Embedding, GatedMlp, Linear, PairLayout, Pass, RmsNorm, Rope,
        RopeScaling, Rows,
    },
    settings::Settings,
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "Phi-3",
    gguf: "phi3",
    hugging_face: &["Phi3ForCausalLM"],
    names: &[
        ("token_embd", "model.embed_tokens"),
        ("blk.*.attn_norm", "model.layers.*.input_layernorm"),
        ("blk.*.attn_qkv", "model.layers.*.self_attn.qkv_proj"),
        ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
        ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
        ("blk.*.ffn_up", "model.layers.*.mlp.gate_up_proj"),
        ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    build: |settings, weights| Ok(Box::new(Phi3::build(settings, weights)?)),
};

struct Phi3 {
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

impl Network for Phi3 {
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

impl Phi3 {
    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "intermediate_size")?;
        let epsilon = settings.positive("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
        let window = settings.window()?;
        let heads = settings.heads()?;
        let (q_features, kv_features) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
        let qkv_features = q_features + 2 * kv_features;

        let mut rope = settings.rope(heads.head_dim, PairLayout::Halves, None)?;
        // LongRoPE's factors come in GGUF files as tensors, in a config.json as lists (`Settings::rope` reads those).
        if weights.contains("rope_factors_long") {
            let long = settings.beyond_original_context()?;
            let name = if long { "rope_factors_long" } else { "rope_factors_short" };
            let divisors = weights.vector(name, "weight", rope.rotary_dims / 2)?;
            let attention_factor = match settings.find_positive("rope.scaling.attn_factor", "")? {
                Some(factor) => factor,
                None => settings.long_rope_attention_factor()?,
            };
            rope.scaling = Some(RopeScaling::Divisors { divisors, attention_factor });
        }

        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let qkv = |rows| weights.linear_rows("attn_qkv", qkv_features, hidden, &[rows]);
            let gate_up = |rows| weights.linear_rows("ffn_up", 2 * intermediate, hidden, &[rows]);
            let parts = AttentionParts {
                query: qkv(0..q_features)?,
                key: qkv(q_features..q_features + kv_features)?,
                value: qkv(q_features + kv_features..qkv_features)?,
                output: weights.linear("attn_output", hidden, q_features)?,
                norm: None,
            };
            Ok(Block {
                attention_norm: weights.rms_norm("attn_norm", hidden, epsilon)?,
                attention: Attention::new(layer, parts, heads.head_dim, heads.scale(), window),
                mlp_norm: weights.rms_norm("ffn_norm", hidden, epsilon)?,
                mlp: GatedMlp {
                    gate: gate_up(0..intermediate)?,
                    up: gate_up(intermediate..2 * intermediate)?,
                    down: weights.linear("ffn_down", hidden, intermediate)?,
                    activation: Activation::Silu,
                },
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
