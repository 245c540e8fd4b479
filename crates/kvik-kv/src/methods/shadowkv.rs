//! ShadowKV: keys as a few coefficients, values at hand or in a file, and attention to the chunks that a query asks for.
//!
//! Sun et al., "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", ICML 2025 (arXiv 2410.21465).
//!
//! Keys lie near a space of few dimensions before rotation, all KV heads of a layer taken together. When a prompt has been read,
//! its keys are therefore replaced by `rank` coefficients a token, which all heads of the layer share, and by the layer's
//! `rank` directions. Each `chunk` of tokens leaves the mean of its rotated keys as a landmark. The chunks that their landmark
//! describes worst, by the smallest cosine to one of their keys, are kept as they were: `outliers` of them a head; the first
//! tokens are mostly among them. So do the last `local` chunks of the prompt, and all that is decoded later.
//!
//! Each decoded token scores the landmarks as it would keys, and each KV head attends to the `budget / chunk` chunks with the
//! largest probability among its queries, exactly these, beside the outliers and the recent tokens. Their keys are rebuilt and
//! rotated to their own positions; chunks that the token before had chosen are still there, so that most are not rebuilt.
//! `values=file` keeps the values in a file, and reads those of new chunks while their keys are rebuilt.
//!
//! A prompt that is not longer than what every token would attend to anyway stays as it is, to the bit. Later prompts of a
//! conversation attend to everything, rebuilt, and are then taken in like the first: by the directions that are there, if these
//! describe their keys about as well, else by their own.
//!
//! Defaults are the paper's; `rank=auto` is its 160 of 1024 dims in proportion, at least 32, and small models whose heads have
//! few dims in all want more: 60 of 192 loses little where 30 does not. The compressed part of a prompt is a whole number of 64
//! tokens, as with the authors' offloading class, and what is left is local. A chunk of a file is read with the 64 tokens around
//! it. Methods that drop or merge tokens cannot come before it, because the heads' keys of a token are taken apart together;
//! bits (of values) and places go behind it. Singular vectors come from the keys' Gram matrix, which takes a moment at the end of
//! a prompt; reading the prompt is neither faster nor smaller. A cache that it has taken apart cannot be exported.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use kvik_kernels::{
    Phase,
    attention::{AttentionShape, Codec, LowRank, PlaneKind, Rotary, TILE_TOKENS},
};

use crate::{
    Arguments, CacheError, Direction, Evidence, KeyRotation, KvShape, LayerShape, Method, MethodInfo,
    OpenCache, Parameter, ParameterKind, RunCopy, SegmentRow, SpillFile, StepQueries,
    landmarks::{Chunks, Landmarks, chunks, pack_group},
    pipeline::registry::Apart,
    principal::{gram, project, residual, symmetric_eigen},
};

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "shadowkv",
    direction: Direction::Channels,
    summary: "keys as coefficients of low rank; each token attends to the chunks whose landmarks it asks for",
    paper: "Sun et al., ICML 2025, arXiv 2410.21465",
    parameters: &[
        Parameter {
            name: "rank",
            kind: ParameterKind::CountOr { word: "auto", min: 1, max: 65536 },
            default: "auto",
            about: "coefficients of a token's keys, all KV heads together (the paper's default is 160 of 1024 dims, and `auto` is in proportion)",
        },
        Parameter {
            name: "chunk",
            kind: ParameterKind::Choice(&["4", "8", "16"]),
            default: "8",
            about: "tokens that share a landmark (the paper's default)",
        },
        Parameter {
            name: "budget",
            kind: ParameterKind::Count { min: 4, max: 1 << 30 },
            default: "2048",
            about: "tokens in the chunks that a head chooses (the paper's default)",
        },
        Parameter {
            name: "outliers",
            kind: ParameterKind::CountOr { word: "auto", min: 0, max: 1 << 20 },
            default: "auto",
            about: "chunks of a prompt that stay exact in each head (`auto`: 24 for 1024 tokens of budget, the official default)",
        },
        Parameter {
            name: "local",
            kind: ParameterKind::Count { min: 1, max: 1 << 20 },
            default: "4",
            about: "chunks at the end of a prompt that stay exact at least (the paper's default)",
        },
        Parameter {
            name: "values",
            kind: ParameterKind::Choice(&["ram", "file"]),
            default: "ram",
            about: "where values lie that no token has chosen (the paper's slow memory is a CPU's RAM)",
        },
        Parameter {
            name: "path",
            kind: ParameterKind::Text,
            default: "temp",
            about: "folder for the file; `temp` is the system's folder for temporary files",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("shadowkv.rs"),
    check: |arguments| {
        let (budget, chunk) = (arguments.count("budget"), arguments.count("chunk"));
        if !budget.is_multiple_of(chunk) {
            return Some(format!(
                "shadowkv's budget of {budget} tokens must be a multiple of its chunk of {chunk}"
            ));
        }
        (arguments.text("values") == "ram" && arguments.text("path") != "temp")
            .then(|| "shadowkv's path is for values=file, and its values are in RAM".to_owned())
    },
    build: |arguments, shape| Ok(Box::new(ShadowKv::new(arguments, shape)?)),
};

/// What it does not go together with.
pub const APART: Apart = Apart {
    method: "shadowkv",
    from: |other| {
        (other.direction < Direction::Channels).then_some(
            "shadowkv takes the keys of all heads of a token apart together and chooses among all tokens itself, so every head and layer \
             must hold the whole prompt",
        )
    },
};

/// Of the paper's models: rank over dims of all KV heads.
const PAPER_RANK: (usize, usize) = (160, 1024);
/// Smallest rank that `auto` gives, if keys have as many dims.
const LEAST_RANK: usize = 32;
/// Later prompts use the directions of an earlier one while the part of their keys' energy that these miss is at most so many
/// times what they missed of their own, or of so small a part that bf16 hides it.
const RESIDUAL_GROWTH: f64 = 1.5;
const RESIDUAL_FLOOR: f64 = 1e-5;
/// How many chunks were chosen, and how many of them were there already.
#[derive(Debug, Default)]
pub struct Traffic {
    chosen: AtomicU64,
    copied: AtomicU64,
    copied_values_bytes: AtomicU64,
}

impl Traffic {
    /// Part of the chosen chunks that the step before had chosen as well.
    pub fn hit_rate(&self) -> f64 {
        1.0 - self.copied.load(Relaxed) as f64 / self.chosen.load(Relaxed).max(1) as f64
    }

    /// Bytes of the values of the chunks that were not there.
    pub fn value_bytes(&self) -> u64 {
        self.copied_values_bytes.load(Relaxed)
    }

    /// Starts counting again.
    pub fn reset(&self) {
        for count in [&self.chosen, &self.copied, &self.copied_values_bytes] {
            count.store(0, Relaxed);
        }
    }
}

/// The method for one sequence.
pub struct ShadowKv {
    rank: Option<usize>,
    chunk: usize,
    budget: usize,
    outliers: usize,
    local: usize,
    file: Option<SpillFile>,
    /// Per layer; `None` while it is as it was.
    layers: Vec<Option<Layer>>,
    /// Rotations that layers have, and their angles at every position that is rebuilt.
    angles: Vec<Angles>,
    traffic: Arc<Traffic>,
}

#[derive(Clone)]
struct Angles {
    rotary: Arc<Rotary>,
    /// `[positions, pairs]`.
    table: Arc<Vec<(f32, f32)>>,
}

#[derive(Clone)]
struct Layer {
    parts: Vec<Part>,
    heads: Vec<Landmarks>,
}

/// What one prompt added to a layer.
#[derive(Clone)]
struct Part {
    rows: usize,
    codecs: Vec<Arc<LowRank>>,
    /// Part of the keys' energy that the directions miss.
    residual: f64,
}

/// A layer's prompt, taken apart.
struct Decomposed {
    codecs: Vec<Arc<LowRank>>,
    residual: f64,
    /// `[rows, rank]`.
    coefficients: Vec<f32>,
    heads: Vec<Chunks>,
}

impl ShadowKv {
    /// The method with the arguments of a pipeline's stage, for a model of this `shape`.
    ///
    /// # Errors
    /// A sentence that says why it does not fit.
    pub fn new(arguments: &Arguments, shape: &KvShape) -> Result<Self, String> {
        let number = |name: &str| (arguments.text(name) != "auto").then(|| arguments.count(name));
        let (budget, rank) = (arguments.count("budget"), number("rank"));
        for layer in shape.full_layers() {
            let dims = key_dims(&shape.layers[layer]);
            if let Some(rank) = rank.filter(|&rank| rank > dims) {
                return Err(format!(
                    "a rank of {rank} is more than the {dims} dims that the keys of layer {layer} have in all"
                ));
            }
        }
        let file = match (arguments.text("values"), arguments.text("path")) {
            ("ram", _) => None,
            (_, "temp") => Some(std::env::temp_dir()),
            (_, path) => Some(Path::new(path).to_owned()),
        };
        let file = file.map(|folder| SpillFile::in_folder(&folder)).transpose();
        Ok(Self {
            rank,
            chunk: arguments.count("chunk"),
            budget,
            outliers: number("outliers").unwrap_or(budget * 24 / 1024),
            local: arguments.count("local"),
            file: file.map_err(|error| error.to_string())?,
            layers: vec![None; shape.layers.len()],
            angles: Vec::new(),
            traffic: Arc::default(),
        })
    }

    /// Counts of what it copies.
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    fn rank(&self, dims: usize) -> usize {
        let (rank, of) = PAPER_RANK;
        self.rank.unwrap_or_else(|| (dims * rank).div_ceil(of).next_multiple_of(2).max(LEAST_RANK)).min(dims)
    }

    /// Rows of a layer's growing segments that are to be taken apart: whole tiles before the local chunks.
    fn new_rows(&self, cache: &OpenCache<'_>, layer: usize) -> usize {
        let growing = cache.segments(layer, 0).last().map_or(0, |segment| segment.len());
        let rows = growing.saturating_sub(self.local * self.chunk) / TILE_TOKENS * TILE_TOKENS;
        let least = if self.layers[layer].is_some() { 0 } else { self.budget + self.outliers * self.chunk };
        if rows > least { rows } else { 0 }
    }

    /// Takes the newest `rows` full tiles of a layer apart.
    fn decompose(&self, cache: &OpenCache<'_>, layer: usize, first: usize, rows: usize) -> Decomposed {
        let LayerShape { kv_heads, key_dim, .. } = cache.layer(layer);
        let outliers = match &self.layers[layer] {
            // As many of its chunks as the first prompt had of its own.
            Some(old) => (self.outliers * rows).div_ceil(old.parts[0].rows).min(self.outliers),
            None => self.outliers,
        };
        let width = kv_heads * key_dim;
        let mut joint = vec![0f32; rows * width];
        let rotary = cache.rotary(layer);
        let angles = rotary.as_ref().map(|rotary| self.angles(rotary));
        let heads = (0..kv_heads).map(|kv_head| {
            let mut keys = cache.keys(layer, kv_head, first..first + rows);
            let chunks = chunks(&keys, key_dim, self.chunk, outliers);
            for (index, key) in keys.chunks_exact_mut(key_dim).enumerate() {
                if let (Some(rotary), Some(angles)) = (&rotary, angles) {
                    let pairs = rotary.frequencies.len();
                    rotary.unrotate_by(key, &angles[(first + index) * pairs..][..pairs]);
                }
                joint[index * width + kv_head * key_dim..][..key_dim].copy_from_slice(key);
            }
            chunks
        });
        let heads = heads.collect();
        let old = self.layers[layer].as_ref().and_then(|old| old.parts.last());
        let (codecs, residual, coefficients) = factors(&joint, width, kv_heads, self.rank(width), old);
        Decomposed { codecs, residual, coefficients, heads }
    }

    /// Puts what [`Self::decompose`] gave in the place of the keys.
    fn take_in(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        first: usize,
        rows: usize,
        new: Decomposed,
    ) -> Result<(), CacheError> {
        let shape = cache.layer(layer).tile();
        let index = cache.segments(layer, 0).len() - 1;
        let mut exact = Vec::with_capacity(new.heads.len());
        for (kv_head, chunks) in new.heads.iter().enumerate() {
            exact.push(self.exact_rows(cache, layer, kv_head, first, &chunks.outliers)?);
        }
        for kv_head in 0..new.heads.len() {
            cache.split(layer, kv_head, rows / TILE_TOKENS);
        }
        let rotation = cache.rotary(layer).map_or(KeyRotation::Stored, KeyRotation::AtPosition);
        let codecs: Vec<Arc<dyn Codec>> = new.codecs.iter().map(|codec| Arc::clone(codec) as _).collect();
        let rank = new.codecs[0].rank();
        cache.replace_keys(layer, index, &codecs, rank, &new.coefficients, rotation)?;
        let part = Part { rows, codecs: new.codecs, residual: new.residual };
        let state = self.layers[layer].get_or_insert_with(|| Layer { parts: Vec::new(), heads: Vec::new() });
        state.parts.push(part);
        for (kv_head, (chunks, exact)) in new.heads.into_iter().zip(exact).enumerate() {
            let slots = self.budget / self.chunk;
            if state.heads.len() == kv_head {
                state.heads.push(Landmarks::empty(slots));
            }
            state.heads[kv_head].extend(shape, first, self.chunk, &chunks);
            if let Some(exact) = exact {
                cache.add_copies(layer, kv_head, exact);
            }
            let empty = SegmentRow {
                key: &vec![0.0; shape.key_dim],
                value: &vec![0.0; shape.value_dim],
                position: u32::MAX,
                bias: 0.0,
            };
            let slots = cache.segment(layer, &vec![empty; self.budget])?;
            cache.add_copies(layer, kv_head, slots);
        }
        Ok(())
    }

    /// A segment of all outliers of a head, those of earlier prompts included, in the place of its copies.
    fn exact_rows(
        &self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        kv_head: usize,
        first: usize,
        outliers: &[u32],
    ) -> Result<Option<crate::Segment>, CacheError> {
        let LayerShape { key_dim, value_dim, .. } = cache.layer(layer);
        let (mut positions, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let earlier = cache.copies(layer, kv_head).len().saturating_sub(1);
        for index in 0..earlier {
            let (k, v) = cache.read_copies(layer, kv_head, index)?;
            keys.extend(k);
            values.extend(v);
            positions.extend(cache.copies(layer, kv_head)[index].positions());
        }
        cache.drop_copies(layer, kv_head);
        for &chunk in outliers {
            let start = first + chunk as usize * self.chunk;
            keys.extend(cache.keys(layer, kv_head, start..start + self.chunk));
            values.extend(cache.values(layer, kv_head, start..start + self.chunk));
            positions.extend(start as u32..(start + self.chunk) as u32);
        }
        let rows = keys.chunks_exact(key_dim).zip(values.chunks_exact(value_dim)).zip(positions);
        let rows: Vec<SegmentRow<'_>> =
            rows.map(|((key, value), position)| SegmentRow { key, value, position, bias: 0.0 }).collect();
        if rows.is_empty() { Ok(None) } else { cache.segment(layer, &rows).map(Some) }
    }

    /// Has each head of a layer visit the chunks that `queries` (`[rows, heads, key_dim]`) ask for.
    fn select(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        shape: &AttentionShape,
        queries: &[f32],
    ) -> Result<(), CacheError> {
        let Some(state) = &mut self.layers[layer] else { return Ok(()) };
        let tile = shape.tile;
        let mut chosen: Vec<(&mut Landmarks, Vec<RunCopy>)> =
            state.heads.iter_mut().map(|head| (head, Vec::new())).collect();
        cache.pool().for_each_row_in(&mut chosen, 1, 1, |kv_head, chosen| {
            let (head, runs) = &mut chosen[0];
            let packed = pack_group(shape, kv_head, queries);
            let best = head.best(tile, &packed);
            *runs = head.replace(kv_head, self.chunk, &best);
        });
        let slots = self.budget / self.chunk * chosen.len();
        let mut runs: Vec<RunCopy> = chosen.into_iter().flat_map(|(_, runs)| runs).collect();
        self.traffic.chosen.fetch_add(slots as u64, Relaxed);
        self.traffic.copied.fetch_add(runs.len() as u64, Relaxed);
        let bytes = runs.len() * self.chunk * tile.value_dim * 2;
        self.traffic.copied_values_bytes.fetch_add(bytes as u64, Relaxed);
        let rotary = cache.rotary(layer);
        let angles = rotary.as_ref().map_or(&[][..], |rotary| self.angles(rotary));
        cache.copy(layer, self.chunk, &mut runs, angles)?;
        if let Some(file) = &self.file {
            for run in &runs {
                let tile = [(run.from / TILE_TOKENS) as u32];
                cache.offload(file, layer, run.kv_head, PlaneKind::Values, tile)?;
            }
        }
        Ok(())
    }

    /// Angles of a rotation, as far as they are known.
    fn angles(&self, rotary: &Arc<Rotary>) -> &[(f32, f32)] {
        let known = self.angles.iter().find(|known| same(&known.rotary, rotary));
        known.map_or(&[], |known| &known.table)
    }

    /// Computes the angles at `positions` positions for every rotation.
    fn know_angles(&mut self, cache: &OpenCache<'_>, layers: &[usize], positions: usize) {
        for rotary in layers.iter().filter_map(|&layer| cache.rotary(layer)) {
            let pairs = rotary.frequencies.len();
            let index =
                self.angles.iter().position(|known| same(&known.rotary, &rotary)).unwrap_or_else(|| {
                    self.angles.push(Angles { rotary: Arc::clone(&rotary), table: Arc::default() });
                    self.angles.len() - 1
                });
            let angles = Arc::make_mut(&mut self.angles[index].table);
            let known = angles.len() / pairs.max(1);
            if known < positions {
                angles.reserve_exact((positions - known) * pairs);
                angles.extend(rotary.angles(known as u32..positions as u32));
            }
        }
    }
}

impl Method for ShadowKv {
    fn waits_for_end(&self) -> bool {
        // Values that go to a file would leave RAM for all who share them.
        self.file.is_none()
    }

    fn evidence(&self) -> Evidence {
        Evidence { window: 1, ..Evidence::NONE }
    }

    fn selects(&self) -> bool {
        true
    }

    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        let Some(state) = &self.layers[layer] else { return Ok(()) };
        let shadow = state.parts.iter().map(|part| part.rows / TILE_TOKENS).sum::<usize>() as u32;
        let heads = state.heads.len();
        if queries.phase == Phase::Prefill {
            (0..heads).for_each(|kv_head| cache.visit(layer, kv_head, None));
            return Ok(());
        }
        for kv_head in 0..heads {
            let tiles = cache.tiles(layer, kv_head) as u32;
            cache.visit(layer, kv_head, Some((shadow..tiles).collect()));
        }
        self.select(cache, layer, queries.shape, queries.queries)
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let layers: Vec<usize> = cache.shape().full_layers().collect();
        if layers.iter().all(|&layer| self.new_rows(cache, layer) == 0) {
            return Ok(());
        }
        self.know_angles(cache, &layers, cache.tokens());
        let threads = cache.pool().threads();
        for layers in layers.chunks(threads) {
            let mut work: Vec<(usize, usize, usize, Option<Decomposed>)> = Vec::with_capacity(layers.len());
            for &layer in layers {
                let rows = self.new_rows(cache, layer);
                let growing = cache.segments(layer, 0).last().map_or(0, |segment| segment.len());
                work.push((layer, cache.rows(layer, 0) - growing, rows, None));
            }
            let (this, open) = (&*self, &*cache);
            open.pool().for_each_row_in(&mut work, 1, 1, |_, work| {
                let (layer, first, rows, decomposed) = &mut work[0];
                if *rows > 0 {
                    *decomposed = Some(this.decompose(open, *layer, *first, *rows));
                }
            });
            for (layer, first, rows, decomposed) in work {
                if let Some(decomposed) = decomposed {
                    self.take_in(cache, layer, first, rows, decomposed)?;
                }
            }
        }
        for &layer in &layers {
            // The chunks that the last token of the prompt asks for are a good guess for the next.
            let last = cache.window_queries(layer).map(|(queries, _, shape)| {
                (queries[queries.len() - shape.heads * shape.tile.key_dim..].to_vec(), shape)
            });
            if let Some((queries, shape)) = last {
                self.select(cache, layer, &shape, &queries)?;
            }
            let (Some(file), Some(state)) = (&self.file, &self.layers[layer]) else { continue };
            let tiles = state.parts.iter().map(|part| part.rows / TILE_TOKENS).sum::<usize>() as u32;
            for kv_head in 0..state.heads.len() {
                cache.offload(file, layer, kv_head, PlaneKind::Values, 0..tiles)?;
            }
        }
        self.traffic.reset();
        Ok(())
    }

    fn used_bytes(&self) -> usize {
        let layers = self.layers.iter().flatten();
        let layers = layers.map(|layer| {
            let parts = layer.parts.iter().flat_map(|part| &part.codecs).map(|codec| codec.bytes());
            let heads = layer.heads.iter().map(Landmarks::bytes);
            parts.sum::<usize>() + heads.sum::<usize>()
        });
        let angles = self.angles.iter().map(|known| size_of_val(&known.table[..]));
        layers.sum::<usize>() + angles.sum::<usize>()
    }

    fn truncated(&mut self, len: usize) {
        if len == 0 {
            self.layers.fill_with(|| None);
            self.angles.clear();
        }
    }

    fn save(&self, _state: &mut Vec<u8>) -> Result<(), &'static str> {
        match self.layers.iter().all(Option::is_none) {
            true => Ok(()),
            false => Err("shadowkv's bases and landmarks are not written yet"),
        }
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self {
            file: self.file.clone(),
            layers: self.layers.clone(),
            angles: self.angles.clone(),
            traffic: Arc::default(),
            ..*self
        })
    }
}

fn key_dims(layer: &LayerShape) -> usize {
    layer.kv_heads * layer.key_dim
}

fn same(a: &Arc<Rotary>, b: &Arc<Rotary>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// Codecs of the heads, the part of the energy that they miss, and the coefficients of `joint` (`[rows, width]`), over the
/// directions of `old` if these describe the rows about as well as their own rows, otherwise over the rows' own.
fn factors(
    joint: &[f32],
    width: usize,
    kv_heads: usize,
    rank: usize,
    old: Option<&Part>,
) -> (Vec<Arc<LowRank>>, f64, Vec<f32>) {
    if let Some(old) = old {
        let directions: Vec<f32> = (0..old.codecs[0].rank())
            .flat_map(|index| old.codecs.iter().flat_map(move |codec| codec.direction(index)))
            .collect();
        let coefficients = project(joint, width, &directions);
        let residual = residual(joint, width, &directions, &coefficients);
        if residual <= RESIDUAL_FLOOR.max(RESIDUAL_GROWTH * old.residual) {
            return (old.codecs.clone(), residual, coefficients);
        }
    }
    let (energies, vectors) = symmetric_eigen(gram(joint, width), width);
    let directions: Vec<f32> = vectors[..rank * width].iter().map(|&x| x as f32).collect();
    let missed: f64 = energies[rank..].iter().map(|energy| energy.max(0.0)).sum();
    let residual = missed / energies.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    (LowRank::heads(&directions, rank, kv_heads), residual, project(joint, width, &directions))
}
