//! GPT-NeoX (Black et al. 2022) and Pythia: plain multi-head attention with rotary positions on a part of each head, and
//! attention and feed-forward side by side on the residual stream.

use std::{ops::Range, sync::Arc};

use super::{Architecture, BuildError, Network};
use crate::{
    layers::{
        Activation, Attention, AttentionParts, Embedding, LayerNorm, Linear, Mlp, PairLayout, Pass, Rope,
        Rows, activation_named,
    },
    settings::{Settings, SettingsError},
    weights::Weights,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "GPT-NeoX",
    gguf: "gptneox",
    hugging_face: &["GPTNeoXForCausalLM"],
    names: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("blk.*.attn_norm", "gpt_neox.layers.*.input_layernorm"),
        ("blk.*.attn_qkv", "gpt_neox.layers.*.attention.query_key_value"),
        ("blk.*.attn_output", "gpt_neox.layers.*.attention.dense"),
        ("blk.*.ffn_norm", "gpt_neox.layers.*.post_attention_layernorm"),
        ("blk.*.ffn_up", "gpt_neox.layers.*.mlp.dense_h_to_4h"),
        ("blk.*.ffn_down", "gpt_neox.layers.*.mlp.dense_4h_to_h"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "embed_out"),
    ],
    build: |settings, weights| Ok(Box::new(GptNeoX::build(settings, weights)?)),
};

struct GptNeoX {
    embedding: Embedding,
    rope: Rope,
    blocks: Vec<Block>,
    /// Both parts of a block read the residual stream before either adds to it.
    parallel: bool,
    norm: LayerNorm,
    output: Arc<Linear>,
}

struct Block {
    attention_norm: LayerNorm,
    attention: Attention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

impl Network for GptNeoX {
    fn forward(&self, pass: &mut Pass<'_, '_>) -> Rows {
        let angles = self.rope.angles(pass);
        let mut x = self.embedding.apply(pass);
        for block in &self.blocks {
            let for_attention = block.attention_norm.apply(pass, &x);
            if self.parallel {
                let for_mlp = block.mlp_norm.apply(pass, &x);
                block.attention.add_to(pass, &for_attention, Some(&angles), &mut x);
                block.mlp.add_to(pass, &for_mlp, &mut x);
            } else {
                block.attention.add_to(pass, &for_attention, Some(&angles), &mut x);
                let for_mlp = block.mlp_norm.apply(pass, &x);
                block.mlp.add_to(pass, &for_mlp, &mut x);
            }
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

impl GptNeoX {
    fn build(settings: &Settings<'_>, weights: &Weights<'_>) -> Result<Self, BuildError> {
        let hidden = settings.count("embedding_length", "hidden_size")?;
        let intermediate = settings.count("feed_forward_length", "intermediate_size")?;
        let epsilon = settings.positive("attention.layer_norm_epsilon", "layer_norm_eps")?;
        let heads = settings.heads()?;
        let features = heads.heads * heads.head_dim;
        let activation = activation(settings)?;

        let rope = settings.rope(heads.head_dim, PairLayout::Halves, None)?;

        // Q, K and V alternate in the fused rows: once in GGUF files, head by head in Hugging Face's.
        let turns = if settings.gguf() { 1 } else { heads.heads };
        let part = |part: usize| -> Vec<Range<usize>> {
            let size = features / turns;
            (0..turns).map(|turn| (3 * turn + part) * size).map(|start| start..start + size).collect()
        };
        let block = |layer| -> Result<Block, BuildError> {
            let weights = weights.block(layer);
            let fused = |index| weights.linear_rows("attn_qkv", 3 * features, hidden, &part(index));
            let parts = AttentionParts {
                query: fused(0)?,
                key: fused(1)?,
                value: fused(2)?,
                output: weights.linear("attn_output", hidden, features)?,
                norm: None,
            };
            Ok(Block {
                attention_norm: weights.layer_norm("attn_norm", hidden, epsilon)?,
                attention: Attention::new(layer, parts, heads.head_dim, heads.scale(), None),
                mlp_norm: weights.layer_norm("ffn_norm", hidden, epsilon)?,
                mlp: Mlp {
                    up: weights.linear("ffn_up", intermediate, hidden)?,
                    down: weights.linear("ffn_down", hidden, intermediate)?,
                    activation,
                },
            })
        };

        let table = Arc::new(weights.table("token_embd", hidden)?);
        Ok(Self {
            rope: Rope::new(&rope, settings.context_tokens),
            blocks: (0..settings.count("block_count", "num_hidden_layers")?)
                .map(block)
                .collect::<Result<_, _>>()?,
            parallel: settings.find("use_parallel_residual", "use_parallel_residual")?.unwrap_or(true),
            norm: weights.layer_norm("output_norm", hidden, epsilon)?,
            output: weights.output("output", &table)?,
            embedding: Embedding { table, scale: 1.0 },
        })
    }
}

fn activation(settings: &Settings<'_>) -> Result<Activation, SettingsError> {
    let name = settings.find("", "hidden_act")?.unwrap_or("gelu");
    let unknown = || SettingsError::Unknown { name: "activation".into(), value: name.into() };
    activation_named(name).ok_or_else(unknown)
}
