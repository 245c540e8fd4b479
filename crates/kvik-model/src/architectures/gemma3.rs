//! Gemma 3 (Gemma Team 2025), text: norms before and after each part and on every query and key head, and two kinds of
//! layers: most attend over a short sliding window with a small RoPE base, every sixth over everything with a large one.

use std::sync::Arc;

use super::{Architecture, BuildError, Network};
use crate::{
    layers::{
        Activation, Attention, Embedding, GatedMlp, Linear, PairLayout, Pass, QueryKeyNorm, RmsNorm, Rope,
        RopeSettings, Rows,
    },
    settings::{LayerWindows, Settings, SettingsError},
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "Gemma 3",
    gguf: "gemma3",
    hugging_face: &["Gemma3ForCausalLM"],
    names: &[
        ("token_embd", "model.embed_tokens"),
        ("blk.*.attn_norm", "model.layers.*.input_layernorm"),
        ("blk.*.attn_q", "model.layers.*.self_attn.q_proj"),
        ("blk.*.attn_k", "model.layers.*.self_attn.k_proj"),
        ("blk.*.attn_v", "model.layers.*.self_attn.v_proj"),
        ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm"),
        ("blk.*.attn_k_norm", "model.layers.*.self_attn.k_norm"),
        ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
        ("blk.*.post_attention_norm", "model.layers.*.post_attention_layernorm"),
        ("blk.*.ffn_norm", "model.layers.*.pre_feedforward_layernorm"),
        ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj"),
        ("blk.*.ffn_up", "model.layers.*.mlp.up_proj"),
        ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
        ("blk.*.post_ffw_norm", "model.layers.*.post_feedforward_layernorm"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    build: |settings, weights| Ok(Box::new(Gemma3::build(settings, weights)?)),
};

struct Gemma3 {
    embedding: Embedding,
    global_rope: Rope,
    local_rope: Rope,
    blocks: Vec<Block>,
    norm: RmsNorm,
    output: Arc<Linear>,
}

struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
    post_mlp_norm: RmsNorm,
}

impl Network for Gemma3 {
    fn forward(&self, pass: &mut Pass<'_, '_>) -> Rows {
        let global = self.global_rope.angles(pass);
        let local = self.local_rope.angles(pass);
        let mut x = self.embedding.apply(pass);
        for block in &self.blocks {
            let angles = if block.attention.is_windowed() { &local } else { &global };
            let h = block.attention_norm.apply(pass, &x);
            let h = block.attention.apply(pass, &h, Some(angles));
            let h = block.post_attention_norm.apply(pass, &h);
            x.add(pass.pool, &h);

            let h = block.mlp_norm.apply(pass, &x);
            let h = block.mlp.apply(pass, &h);
            let h = block.post_mlp_norm.apply(pass, &h);
            x.add(pass.pool, &h);
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

    fn rope(&self, layer: usize) -> Option<&Rope> {
        Some(if self.blocks[layer].attention.is_windowed() { &self.local_rope } else { &self.global_rope })
    }
}

impl Gemma3 {
    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "intermediate_size")?;
        let epsilon = settings.positive("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
        let heads = settings.heads()?;
        let layers = settings.count("block_count", "num_hidden_layers")?;
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if let Some(cap) = settings.find::<f32>("", name)? {
                return Err(SettingsError::Unknown { name: name.into(), value: cap.to_string() }.into());
            }
        }

        let windows = LayerWindows::from_settings(settings)?;
        let global_rope = settings.rope(heads.head_dim, PairLayout::Halves, Some("full_attention"))?;
        let local_rope = local_rope(settings, heads.head_dim)?;
        // GGUF files do not say the query scale; the 27B model (62 layers) is the one that differs from the usual.
        let query_scalar = match settings.find_positive("", "query_pre_attn_scalar")? {
            Some(scalar) => scalar,
            None if layers == 62 => hidden as f32 / heads.heads as f32,
            None => heads.head_dim as f32,
        };
        let scale = 1.0 / query_scalar.sqrt();

        let norm = |weights: &Weights<'_>, name: &str, features: usize| -> Result<RmsNorm, BuildError> {
            let mut norm = weights.rms_norm(name, features, epsilon)?;
            // The network multiplies by one plus the weight. The GGUF converter has added the one already.
            if !settings.gguf() {
                norm.weight.iter_mut().for_each(|weight| *weight += 1.0);
            }
            Ok(norm)
        };
        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let query_key = QueryKeyNorm {
                query: norm(&weights, "attn_q_norm", heads.head_dim)?,
                key: norm(&weights, "attn_k_norm", heads.head_dim)?,
            };
            let parts = weights.attention(hidden, &heads, Some(query_key))?;
            Ok(Block {
                attention_norm: norm(&weights, "attn_norm", hidden)?,
                attention: Attention::new(layer, parts, heads.head_dim, scale, windows.of(layer)),
                post_attention_norm: norm(&weights, "post_attention_norm", hidden)?,
                mlp_norm: norm(&weights, "ffn_norm", hidden)?,
                mlp: weights.gated_mlp(hidden, intermediate, Activation::GeluTanh)?,
                post_mlp_norm: norm(&weights, "post_ffw_norm", hidden)?,
            })
        };

        let table = Arc::new(weights.table("token_embd", hidden)?);
        Ok(Self {
            global_rope: Rope::new(&global_rope, settings.context_tokens),
            local_rope: Rope::new(&local_rope, settings.context_tokens),
            blocks: (0..layers).map(block).collect::<Result<_, _>>()?,
            norm: norm(weights, "output_norm", hidden)?,
            output: weights.output("output", &table)?,
            embedding: Embedding { table, scale: (hidden as f32).sqrt() },
        })
    }
}

/// The rotary embedding of windowed layers: never scaled, with a base of its own.
fn local_rope(settings: &Settings<'_>, head_dim: usize) -> Result<RopeSettings, SettingsError> {
    let mut rope = settings.rope(head_dim, PairLayout::Halves, Some("sliding_attention"))?;
    rope.scaling = None;
    let described = settings.find_positive("", "rope_parameters.sliding_attention.rope_theta")?;
    let older = settings.find_positive("rope.freq_base_swa", "rope_local_base_freq")?;
    rope.base = described.or(older).unwrap_or(10_000.0);
    Ok(rope)
}
