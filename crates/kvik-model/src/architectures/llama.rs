//! Llama (Touvron et al. 2023) and its many relatives: Llama 2 and 3, SmolLM2, Mistral with its sliding window.

use std::{cell::Cell, sync::Arc};

use kvik_kernels::ThreadPool;

use super::{Architecture, BuildError, Network};
use crate::{
    Checkpoint, ModelError,
    layers::{
        Activation, Attention, Embedding, GatedMlp, Linear, PairLayout, Pass, RmsNorm, Rope, RopeScaling,
        Rows,
    },
    model::find_architecture,
    settings::Settings,
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "Llama",
    gguf: "llama",
    hugging_face: &["LlamaForCausalLM", "MistralForCausalLM"],
    names: &[
        ("token_embd", "model.embed_tokens"),
        ("blk.*.attn_norm", "model.layers.*.input_layernorm"),
        ("blk.*.attn_q", "model.layers.*.self_attn.q_proj"),
        ("blk.*.attn_k", "model.layers.*.self_attn.k_proj"),
        ("blk.*.attn_v", "model.layers.*.self_attn.v_proj"),
        ("blk.*.attn_output", "model.layers.*.self_attn.o_proj"),
        ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
        ("blk.*.ffn_gate", "model.layers.*.mlp.gate_proj"),
        ("blk.*.ffn_up", "model.layers.*.mlp.up_proj"),
        ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    build: |settings, weights| Ok(Box::new(Llama::build(settings, weights)?)),
};

/// The network, open for programs that run its weights in their own way.
pub struct Llama {
    /// Tokens to hidden states.
    pub embedding: Embedding,
    /// What turns queries and keys.
    pub rope: Rope,
    /// Layers, the first one first.
    pub blocks: Vec<Block>,
    /// On the last layer's result.
    pub norm: RmsNorm,
    /// Hidden states to logits.
    pub output: Arc<Linear>,
}

/// A layer of [`Llama`].
pub struct Block {
    /// Before attention.
    pub attention_norm: RmsNorm,
    /// Self-attention, added to what it reads.
    pub attention: Attention,
    /// Before the feed-forward part.
    pub mlp_norm: RmsNorm,
    /// The feed-forward part, added to what it reads.
    pub mlp: GatedMlp,
}

impl Network for Llama {
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

impl Llama {
    /// The network of `checkpoint`, whose architecture must be this one, for its trained context.
    ///
    /// # Errors
    /// [`ModelError`] if settings or weights are missing, damaged or do not fit.
    pub fn load(checkpoint: &Checkpoint, pool: &ThreadPool) -> Result<Self, ModelError> {
        let (architecture, name) = find_architecture(checkpoint)?;
        let mut settings = Settings::new(checkpoint, name);
        let context = settings.count("context_length", "max_position_embeddings");
        settings.context_tokens = context.map_err(BuildError::from)?;
        let loaded = Cell::default();
        Ok(Self::build(&settings, &Weights::new(checkpoint, pool, architecture.names, &loaded))?)
    }

    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "intermediate_size")?;
        let epsilon = settings.positive("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
        let window = settings.window()?;
        let heads = settings.heads()?;

        // The GGUF converter permutes the rows of Q and K so that neighbouring dims turn together.
        let layout = if settings.gguf() { PairLayout::Neighbours } else { PairLayout::Halves };
        let mut rope = settings.rope(heads.head_dim, layout, None)?;
        // Llama 3's scaling comes in GGUF files as a divisor per frequency.
        if let Some(divisors) = weights.find_vector("rope_freqs", "weight", rope.rotary_dims / 2)? {
            rope.scaling = Some(RopeScaling::Divisors { divisors, attention_factor: 1.0 });
        }

        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let parts = weights.attention(hidden, &heads, None)?;
            Ok(Block {
                attention_norm: weights.rms_norm("attn_norm", hidden, epsilon)?,
                attention: Attention::new(layer, parts, heads.head_dim, heads.scale(), window),
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
