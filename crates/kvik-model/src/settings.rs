//! A model's hyper-parameters, under whichever name its file gives them.
//!
//! A GGUF file says `llama.block_count` where a `config.json` says `num_hidden_layers`. An architecture asks for a setting
//! by both names, the GGUF one without the architecture's prefix, and gets it or an error that names the key.

use crate::{
    checkpoint::{Checkpoint, Format},
    layers::{PairLayout, RopeScaling, RopeSettings},
    metadata::{FromValue, Metadata, MetadataError},
};

/// No count in a model's settings comes near this; larger ones would overflow products of two.
const LARGEST_COUNT: usize = 1 << 24;

/// A setting that no network can be built with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingsError {
    /// Missing, or of the wrong type.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A value out of its range.
    #[error("the model's {name} is {value}, but {rule}; the file is damaged or of an unknown kind")]
    Range {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// A variant that Kvik does not have.
    #[error("the model asks for {name} '{value}', which Kvik does not have yet")]
    Unknown {
        /// The setting.
        name: String,
        /// Its value.
        value: String,
    },
}

/// Settings of one model.
#[derive(Clone, Copy)]
pub struct Settings<'a> {
    metadata: &'a Metadata,
    /// The architecture's prefix in a GGUF file; `None` for a `config.json`.
    prefix: Option<&'a str>,
    /// Tokens that the model is opened for.
    pub context_tokens: usize,
}

impl<'a> Settings<'a> {
    /// Settings of `checkpoint`, whose architecture calls itself `name`.
    pub(crate) fn new(checkpoint: &'a Checkpoint, name: &'a str) -> Self {
        let prefix = matches!(checkpoint.format(), Format::Gguf { .. }).then_some(name);
        Self { metadata: checkpoint.metadata(), prefix, context_tokens: 0 }
    }

    /// True for a GGUF file.
    pub fn gguf(&self) -> bool {
        self.prefix.is_some()
    }

    /// The setting called `gguf` or `hf`, if the file has it. An empty name stands for "not in this format".
    ///
    /// # Errors
    /// If it is no `T`.
    pub fn find<T: FromValue<'a>>(&self, gguf: &str, hf: &str) -> Result<Option<T>, SettingsError> {
        match self.prefix {
            Some(_) if gguf.is_empty() => Ok(None),
            Some(prefix) => Ok(self.metadata.find(&format!("{prefix}.{gguf}"))?),
            None if hf.is_empty() => Ok(None),
            None => Ok(self.metadata.find(hf)?),
        }
    }

    /// The setting called `gguf` or `hf`.
    ///
    /// # Errors
    /// If it is missing or no `T`.
    pub fn require<T: FromValue<'a>>(&self, gguf: &str, hf: &str) -> Result<T, SettingsError> {
        match self.prefix {
            Some(prefix) => Ok(self.metadata.require(&format!("{prefix}.{gguf}"))?),
            None => Ok(self.metadata.require(hf)?),
        }
    }

    /// A count: at least 1, and no larger than any model's.
    ///
    /// # Errors
    /// If it is missing or out of range.
    pub fn count(&self, gguf: &str, hf: &str) -> Result<usize, SettingsError> {
        self.checked_count(self.require(gguf, hf)?, gguf, hf)
    }

    /// A count that may be missing.
    ///
    /// # Errors
    /// If it is out of range.
    pub fn find_count(&self, gguf: &str, hf: &str) -> Result<Option<usize>, SettingsError> {
        self.find(gguf, hf)?.map(|count| self.checked_count(count, gguf, hf)).transpose()
    }

    fn checked_count(&self, count: usize, gguf: &str, hf: &str) -> Result<usize, SettingsError> {
        if (1..=LARGEST_COUNT).contains(&count) {
            return Ok(count);
        }
        Err(self.out_of_range(gguf, hf, count, format!("must be from 1 to {LARGEST_COUNT}")))
    }

    /// A positive number.
    ///
    /// # Errors
    /// If it is missing, not positive or not finite.
    pub fn positive(&self, gguf: &str, hf: &str) -> Result<f32, SettingsError> {
        self.checked_positive(self.require(gguf, hf)?, gguf, hf)
    }

    /// A positive number that may be missing.
    ///
    /// # Errors
    /// If it is not positive or not finite.
    pub fn find_positive(&self, gguf: &str, hf: &str) -> Result<Option<f32>, SettingsError> {
        self.find(gguf, hf)?.map(|number| self.checked_positive(number, gguf, hf)).transpose()
    }

    fn checked_positive(&self, number: f32, gguf: &str, hf: &str) -> Result<f32, SettingsError> {
        if number > 0.0 && number.is_finite() {
            return Ok(number);
        }
        Err(self.out_of_range(gguf, hf, number, "must be above 0 and finite".into()))
    }

    /// The sliding window, if there is one; some files say 0 for none.
    ///
    /// # Errors
    /// If it is no count.
    pub fn window(&self) -> Result<Option<usize>, SettingsError> {
        let window: Option<usize> = self.find("attention.sliding_window", "sliding_window")?;
        Ok(window.filter(|&window| window > 0))
    }

    /// An error about the setting called `gguf` or `hf`.
    pub fn out_of_range(&self, gguf: &str, hf: &str, value: impl ToString, rule: String) -> SettingsError {
        let name = self.prefix.map_or_else(|| hf.to_owned(), |prefix| format!("{prefix}.{gguf}"));
        SettingsError::Range { name, value: value.to_string(), rule }
    }

    /// Heads, KV heads and their size.
    ///
    /// # Errors
    /// If a number is missing, or they do not go together.
    pub fn heads(&self) -> Result<Heads, SettingsError> {
        let hidden = self.count("embedding_length", "hidden_size")?;
        let heads = self.count("attention.head_count", "num_attention_heads")?;
        let kv_heads = self.find_count("attention.head_count_kv", "num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let rule = format!("must divide the {heads} attention heads");
            return Err(self.out_of_range("attention.head_count_kv", "num_key_value_heads", kv_heads, rule));
        }
        let head_dim = match self.find_count("attention.key_length", "head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let rule = format!("must divide the hidden size {hidden}");
                return Err(self.out_of_range("attention.head_count", "num_attention_heads", heads, rule));
            }
        };
        Ok(Heads { heads, kv_heads, head_dim })
    }

    /// The rotary embedding, for heads of `head_dim`. In a `config.json` it is described by `rope_parameters`, or in
    /// older files by `rope_scaling` and `rope_theta` (`rotary_pct` and `rotary_emb_base` in GPT-NeoX); `scope` names the
    /// description of one kind of layers inside them.
    ///
    /// # Errors
    /// If the scaling is unknown or incomplete, or a number makes no rotation.
    pub fn rope(
        &self,
        head_dim: usize,
        layout: PairLayout,
        scope: Option<&str>,
    ) -> Result<RopeSettings, SettingsError> {
        let scope = match scope {
            Some(scope) if self.metadata.contains(&format!("rope_parameters.{scope}.rope_theta")) => {
                format!("rope_parameters.{scope}")
            }
            _ if self.metadata.contains("rope_parameters.rope_theta") => "rope_parameters".to_owned(),
            _ => "rope_scaling".to_owned(),
        };
        let theta = format!("{scope}.rope_theta");
        let base = self.first_positive("rope.freq_base", &[&theta, "rope_theta", "rotary_emb_base"])?;
        let base = base.unwrap_or(10_000.0);
        let rotary_dims = match self.find_count("rope.dimension_count", "")? {
            Some(dims) => dims,
            None => {
                let factor = format!("{scope}.partial_rotary_factor");
                let share = self.first_positive("", &[&factor, "partial_rotary_factor", "rotary_pct"])?;
                (share.unwrap_or(1.0) * head_dim as f32) as usize
            }
        };
        if rotary_dims > head_dim || rotary_dims < 2 || rotary_dims % 2 == 1 {
            let rule = format!("must be even and from 2 to the head size {head_dim}");
            let hf = "partial_rotary_factor × head size";
            return Err(self.out_of_range("rope.dimension_count", hf, rotary_dims, rule));
        }
        let scaling = self.rope_scaling(&scope, rotary_dims)?;
        Ok(RopeSettings { rotary_dims, base, scaling, layout })
    }

    /// The first of some names for one positive number that the file has.
    fn first_positive(&self, gguf: &str, hf: &[&str]) -> Result<Option<f32>, SettingsError> {
        for hf in hf {
            if let Some(number) = self.find_positive(gguf, hf)? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    fn rope_scaling(&self, scope: &str, rotary_dims: usize) -> Result<Option<RopeScaling>, SettingsError> {
        let hf = |key: &str| format!("{scope}.{key}");
        let kind = match self.find::<&str>("rope.scaling.type", &hf("rope_type"))? {
            Some(kind) => kind,
            None => self.find("", &hf("type"))?.unwrap_or("default"),
        };
        let factor = || self.positive("rope.scaling.factor", &hf("factor"));
        let original_context = || -> Result<usize, SettingsError> {
            match self
                .find_count("rope.scaling.original_context_length", &hf("original_max_position_embeddings"))?
            {
                Some(context) => Ok(context),
                None => self.count("context_length", "max_position_embeddings"),
            }
        };
        Ok(match kind {
            "default" | "none" => None,
            "linear" => Some(RopeScaling::Linear { factor: factor()? }),
            "dynamic" => {
                Some(RopeScaling::Dynamic { factor: factor()?, original_context: original_context()? })
            }
            "yarn" => Some(RopeScaling::Yarn {
                factor: factor()?,
                original_context: original_context()?,
                beta_fast: self
                    .find_positive("rope.scaling.yarn_beta_fast", &hf("beta_fast"))?
                    .unwrap_or(32.0),
                beta_slow: self
                    .find_positive("rope.scaling.yarn_beta_slow", &hf("beta_slow"))?
                    .unwrap_or(1.0),
                attention_factor: self.find_positive("rope.scaling.attn_factor", &hf("attention_factor"))?,
            }),
            "llama3" => Some(RopeScaling::Llama3 {
                factor: factor()?,
                low_frequency_factor: self.positive("", &hf("low_freq_factor"))?,
                high_frequency_factor: self.positive("", &hf("high_freq_factor"))?,
                original_context: original_context()?,
            }),
            // "su" is what the first models with it called it.
            "longrope" | "su" => self.long_rope(scope, rotary_dims)?,
            other => return Err(SettingsError::Unknown { name: "RoPE scaling".into(), value: other.into() }),
        })
    }

    /// LongRoPE's factors (Ding et al. 2024), the set that the opened context asks for. In a GGUF file they are tensors,
    /// which the architecture reads.
    fn long_rope(&self, scope: &str, rotary_dims: usize) -> Result<Option<RopeScaling>, SettingsError> {
        if self.gguf() {
            return Ok(None);
        }
        let long = self.beyond_original_context()?;
        let key = format!("{scope}.{}", if long { "long_factor" } else { "short_factor" });
        let divisors: Vec<f32> = self.require("", &key)?;
        if divisors.len() != rotary_dims / 2 {
            let rule = format!("must have one for each of the {} pairs of rotary dims", rotary_dims / 2);
            return Err(self.out_of_range("", &key, format!("a list of {}", divisors.len()), rule));
        }
        let attention_factor = match self.find_positive("", &format!("{scope}.attention_factor"))? {
            Some(factor) => factor,
            None => self.long_rope_attention_factor()?,
        };
        Ok(Some(RopeScaling::Divisors { divisors, attention_factor }))
    }

    /// Whether the opened context is longer than the one first trained on.
    ///
    /// # Errors
    /// If the file does not say which that was.
    pub fn beyond_original_context(&self) -> Result<bool, SettingsError> {
        Ok(self.context_tokens > self.original_context()?)
    }

    /// LongRoPE's factor on cosine and sine: `sqrt(1 + ln(stretch) / ln(original context))`.
    ///
    /// # Errors
    /// If the file does not say its contexts.
    pub fn long_rope_attention_factor(&self) -> Result<f32, SettingsError> {
        let original = self.original_context()? as f32;
        let stretch = self.count("context_length", "max_position_embeddings")? as f32 / original;
        Ok(if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() })
    }

    fn original_context(&self) -> Result<usize, SettingsError> {
        self.count("rope.scaling.original_context_length", "original_max_position_embeddings")
    }
}

/// Attention heads of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// KV heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Length of a query, key or value.
    pub head_dim: usize,
}

impl Heads {
    /// The usual softmax scale, `1 / sqrt(head_dim)`.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// Which layers attend over a sliding window, for models in which not all do.
pub struct LayerWindows {
    window: Option<usize>,
    windowed: Vec<bool>,
}

impl LayerWindows {
    /// The window and the layers that have it: listed (`layer_types`), every so many but the last
    /// (`sliding_window_pattern`), or from a layer on (`max_window_layers`, if `use_sliding_window`).
    ///
    /// # Errors
    /// If a setting is no list or number, or a list does not reach the last layer.
    pub fn from_settings(settings: &Settings<'_>) -> Result<Self, SettingsError> {
        let layers = settings.count("block_count", "num_hidden_layers")?;
        let window = match settings.find::<bool>("", "use_sliding_window")? {
            Some(false) => None,
            _ => settings.window()?,
        };
        // GGUF files give the pattern as a period or as a list with an entry per layer.
        let listed = settings.find::<Vec<bool>>("attention.sliding_window_pattern", "").ok().flatten();
        let windowed: Vec<bool> = if let Some(windowed) = listed {
            windowed
        } else if let Some(types) = settings.find::<Vec<&str>>("", "layer_types")? {
            types.into_iter().map(|kind| kind == "sliding_attention").collect()
        } else if let Some(first) = settings.find::<usize>("", "max_window_layers")? {
            (0..layers).map(|layer| layer >= first).collect()
        } else {
            let period = settings.find_count("attention.sliding_window_pattern", "sliding_window_pattern")?;
            // Gemma 3's files leave it unsaid: five layers with a window, then one without.
            let period = period.unwrap_or(6);
            (0..layers).map(|layer| (layer + 1) % period != 0).collect()
        };
        if windowed.len() < layers {
            let rule = format!("must have one for each of the {layers} layers");
            let found = format!("a list of {}", windowed.len());
            return Err(settings.out_of_range(
                "attention.sliding_window_pattern",
                "layer_types",
                found,
                rule,
            ));
        }
        Ok(Self { window, windowed })
    }

    /// The window of `layer`, if it has one.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.windowed[layer])
    }
}
