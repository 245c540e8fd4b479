//! A sequence's cache as bytes: to keep it, to move it, to go on with it elsewhere.
//!
//! What is exported is the cache as it lies in memory: encoded planes stay encoded, and positions, biases, magnitudes, shifts, what
//! was observed of the rows and what the methods remember go along, so that the sequence goes on with the same bits. Everything is
//! little endian. In order:
//!
//! - `KVIKCACH`, the version, the pipeline's text, and which model it is of: its fingerprint, what its weights were changed for,
//!   its layers, how they rotate keys;
//! - the state of the sequence, one blob for each method, and the queries that a prompt in the middle has left;
//! - layer by layer and head by head the statistics and the segments, of each segment its columns and its blocks. A block that
//!   several hold comes once, with its first holder;
//! - a SHA-256 of all that, unless it is for what carries a checksum of its own ([`SequenceCache::export_bare`]).
//!
//! Nothing that a file says is believed: each number is held against the model and the store before it is used, and memory is
//! taken as bytes come. A file that passes all checks may still hold wrong numbers, if somebody meant it to.

mod wire;

use std::io::{Read, Write};

use kvik_kernels::attention::{AttentionShape, PairLayout, Reach, Rotary};

pub(crate) use self::wire::{Sink, Source};
use crate::{
    KvShape, KvStore, LayerShape, Pipeline, SequenceCache,
    evidence::WindowQueries,
    head::HeadCache,
    segment::{Known, Limits, Segment, Written},
    store::CacheError,
};

const MAGIC: [u8; 8] = *b"KVIKCACH";
const VERSION: u32 = 1;

/// Bytes of a pipeline, of a fingerprint, of what a method remembers, and segments of a head, that no cache of today comes near to.
const MOST_TEXT: usize = 1 << 16;
const MOST_STATE: usize = 1 << 24;
const MOST_SEGMENTS: usize = 1 << 16;
const MOST_HEADS: usize = 1 << 16;

fn broken(reason: impl Into<String>) -> CacheError {
    CacheError::Import(reason.into())
}

impl SequenceCache {
    /// Writes the cache, between two passes, to `target`; [`KvStore::import`] reads it.
    ///
    /// # Errors
    /// [`CacheError::Io`] if writing fails; [`CacheError::Export`] if the sequence has methods that are of no pipeline, one has
    /// failed, or one cannot say what it remembers.
    pub fn export(&self, store: &KvStore, target: impl Write) -> Result<(), CacheError> {
        self.export_to(store, Sink::new(target))
    }

    /// As [`Self::export`], without the checksum at the end: for what carries one of its own, which may be faster.
    /// [`KvStore::import_bare`] reads it.
    ///
    /// # Errors
    /// As for [`Self::export`].
    pub fn export_bare(&self, store: &KvStore, target: impl Write) -> Result<(), CacheError> {
        self.export_to(store, Sink::bare(target))
    }

    fn export_to<W: Write>(&self, store: &KvStore, mut sink: Sink<W>) -> Result<(), CacheError> {
        let Some(pipeline) = &self.pipeline else {
            return Err(CacheError::Export("it has methods that are of no pipeline"));
        };
        if self.rewritten_tokens > self.len {
            return Err(CacheError::Export("one of its methods has failed"));
        }
        if self.layers.iter().flat_map(|layer| &layer.heads).any(|head| !head.copies.is_empty()) {
            return Err(CacheError::Export(
                "its keys are coefficients over directions that only this process has",
            ));
        }
        sink.bytes(&MAGIC)?;
        sink.u32(VERSION)?;
        sink.blob(pipeline.as_bytes())?;
        export_shape(store.shape(), &mut sink)?;
        for number in [self.len, self.prompt_tokens, self.turns, self.rewritten_tokens] {
            sink.u64(number as u64)?;
        }
        for method in &self.methods {
            let mut state = Vec::new();
            method.save(&mut state).map_err(CacheError::Export)?;
            sink.blob(&state)?;
        }
        let mut written = Written::default();
        for (layer, window) in self.layers.iter().zip(&self.window) {
            export_window(window, &mut sink)?;
            for head in &layer.heads {
                export_head(head, store, &mut sink, &mut written)?;
            }
        }
        sink.finish()
    }
}

impl KvStore {
    /// Reads a cache that [`SequenceCache::export`] wrote, of the same model and under the same `pipeline`.
    ///
    /// # Errors
    /// [`CacheError::Import`] says what is wrong with it; [`CacheError::Full`] that this store has no room for it. The store then
    /// holds what it held before.
    pub fn import(&mut self, source: impl Read, pipeline: &Pipeline) -> Result<SequenceCache, CacheError> {
        self.import_from(Source::new(source), pipeline)
    }

    /// As [`Self::import`], of what [`SequenceCache::export_bare`] wrote. Whoever calls this has verified `source`.
    ///
    /// # Errors
    /// As for [`Self::import`].
    pub fn import_bare(
        &mut self,
        source: impl Read,
        pipeline: &Pipeline,
    ) -> Result<SequenceCache, CacheError> {
        self.import_from(Source::bare(source), pipeline)
    }

    fn import_from<R: Read>(
        &mut self,
        mut source: Source<R>,
        pipeline: &Pipeline,
    ) -> Result<SequenceCache, CacheError> {
        import_header(&mut source, self.shape(), pipeline)?;
        // An error drops the sequence, and with it the blocks that it has taken so far.
        let mut sequence = self.sequence_with(pipeline)?;
        let tokens = source.count("tokens", self.capacity_tokens())?;
        sequence.len = tokens;
        sequence.prompt_tokens = source.count("tokens of a prompt", tokens)?;
        sequence.turns = source.count("prompts", tokens)?;
        sequence.rewritten_tokens = source.count("rewritten tokens", tokens)?;
        for method in &mut sequence.methods {
            let state = source.blob("bytes of a method's state", MOST_STATE)?;
            method.restore(&state).map_err(|reason| broken(format!("a method cannot go on: {reason}")))?;
            method.truncated(tokens);
        }
        let mut known = Known::default();
        for layer in 0..sequence.layers.len() {
            let shape = self.layer(layer);
            sequence.window[layer] = import_window(&mut source, shape, sequence.evidence().window)?;
            for kv_head in 0..shape.kv_heads {
                let head = &mut sequence.layers[layer].heads[kv_head];
                import_head(head, self, layer, &mut source, &mut known, tokens)?;
                let observed = head.statistics.accumulated.len();
                if shape.window.is_none() && sequence.evidence.accumulated && observed != head.rows() {
                    return Err(broken(format!("{observed} of {} rows have sums", head.rows())));
                }
            }
        }
        source.finish()?;
        Ok(sequence)
    }
}

impl KvShape {
    /// The SHA-256 of all of it, and of the version that exported caches have: two stores with the same one read each other's.
    pub fn identity(&self) -> [u8; 32] {
        let mut sink = Sink::new(std::io::sink());
        let written = sink.u32(VERSION).and_then(|()| export_shape(self, &mut sink));
        debug_assert!(written.is_ok(), "nothing is written");
        sink.checksum()
    }
}

fn import_header<R: Read>(
    source: &mut Source<R>,
    shape: &KvShape,
    pipeline: &Pipeline,
) -> Result<(), CacheError> {
    let mut magic = [0; 8];
    source.fill(&mut magic)?;
    if magic != MAGIC {
        return Err(broken("it is no exported cache"));
    }
    let version = source.u32()?;
    if version != VERSION {
        return Err(broken(format!("it has version {version}, and this program reads version {VERSION}")));
    }
    let text = source.text("bytes of a pipeline", MOST_TEXT)?;
    if text != pipeline.to_string() {
        return Err(broken(format!("it was made under '{text}' and is wanted under '{pipeline}'")));
    }
    import_shape(shape, source)
}

fn export_shape<W: Write>(shape: &KvShape, sink: &mut Sink<W>) -> Result<(), CacheError> {
    sink.blob(shape.fingerprint.as_bytes())?;
    sink.blob(shape.basis.as_bytes())?;
    sink.u64(shape.layers.len() as u64)?;
    for layer in &shape.layers {
        for number in numbers(layer) {
            sink.u64(number)?;
        }
    }
    for (layer, rotary) in shape.rotary.iter().enumerate() {
        let repeated = layer > 0 && shape.rotary[layer - 1] == *rotary;
        sink.u8(if repeated { 2 } else { u8::from(rotary.is_some()) })?;
        if let Some(rotary) = rotary.as_deref().filter(|_| !repeated) {
            sink.u8(rotary.layout as u8)?;
            sink.u64(rotary.frequencies.len() as u64)?;
            sink.f32s(&[rotary.factor])?;
            sink.f32s(&rotary.frequencies)?;
        }
    }
    Ok(())
}

/// Reads the shape of a model and refuses it if it is not `shape`.
fn import_shape<R: Read>(shape: &KvShape, source: &mut Source<R>) -> Result<(), CacheError> {
    let fingerprint = source.text("bytes of a model's fingerprint", MOST_TEXT)?;
    let basis = source.text("bytes of a basis", MOST_TEXT)?;
    if basis != shape.basis {
        return Err(broken(format!(
            "it was made with other weights: '{basis}' there, '{}' here",
            shape.basis
        )));
    }
    let layers = source.u64()?;
    if layers != shape.layers.len() as u64 {
        let own = shape.layers.len();
        return Err(broken(format!("it is of a model with {layers} layers, and this one has {own}")));
    }
    for (index, layer) in shape.layers.iter().enumerate() {
        let mut other = [0; 4];
        for number in &mut other {
            *number = source.u64()?;
        }
        if other != numbers(layer) {
            let [kv_heads, key_dim, ..] = other;
            return Err(broken(format!(
                "it is of another model: layer {index} has {kv_heads} KV heads of {key_dim} dimensions there, and {} of {} here, or \
                 another window",
                layer.kv_heads, layer.key_dim
            )));
        }
    }
    let mut before = None;
    for own in &shape.rotary {
        let rotary = match source.u8()? {
            0 => None,
            1 => Some(import_rotary(source)?),
            2 => before,
            other => return Err(broken(format!("{other} is no kind of rotation"))),
        };
        if rotary.as_ref() != own.as_deref() {
            return Err(broken(
                "its keys are rotated in another way: the model is another, or was opened with another context",
            ));
        }
        before = rotary;
    }
    if fingerprint != shape.fingerprint {
        return Err(broken("it is of another model with the same shape"));
    }
    Ok(())
}

fn import_rotary<R: Read>(source: &mut Source<R>) -> Result<Rotary, CacheError> {
    let layout = if source.flag("layout")? { PairLayout::Neighbours } else { PairLayout::Halves };
    let pairs = source.count("rotated pairs", MOST_HEADS)?;
    let factor = source.f32s("rotations", 1)?[0];
    Ok(Rotary { frequencies: source.f32s("rotations", pairs)?, factor, layout })
}

fn numbers(layer: &LayerShape) -> [u64; 4] {
    let window = layer.window.map_or(u64::MAX, |window| window as u64);
    [layer.kv_heads as u64, layer.key_dim as u64, layer.value_dim as u64, window]
}

fn export_window<W: Write>(window: &WindowQueries, sink: &mut Sink<W>) -> Result<(), CacheError> {
    let WindowQueries { shape, queries, positions, log_sum_exp } = window;
    let Some(shape) = shape.filter(|_| !positions.is_empty()) else { return sink.u64(0) };
    sink.u64(positions.len() as u64)?;
    sink.u64(shape.heads as u64)?;
    sink.f32s(&[shape.scale])?;
    sink.u32s(positions.iter().copied())?;
    sink.f32s(queries)?;
    sink.f32s(log_sum_exp)
}

fn import_window<R: Read>(
    source: &mut Source<R>,
    layer: LayerShape,
    most: usize,
) -> Result<WindowQueries, CacheError> {
    let rows = source.count("queries", if layer.window.is_some() { 0 } else { most })?;
    if rows == 0 {
        return Ok(WindowQueries::default());
    }
    let heads = source.count("query heads", MOST_HEADS)?;
    if heads == 0 || !heads.is_multiple_of(layer.kv_heads) {
        return Err(broken(format!("{heads} query heads share {} KV heads", layer.kv_heads)));
    }
    let scale = source.f32s("scales", 1)?[0];
    let positions = source.u32s(rows)?;
    let queries = source.f32s("queries", rows * heads * layer.key_dim)?;
    let log_sum_exp = source.f32s("sums", rows * heads)?;
    let (kv_heads, tile) = (layer.kv_heads, layer.tile());
    let shape = AttentionShape { heads, kv_heads, tile, scale, reach: Reach::CAUSAL };
    Ok(WindowQueries { shape: Some(shape), queries, positions, log_sum_exp })
}

fn export_head<W: Write>(
    head: &HeadCache,
    store: &KvStore,
    sink: &mut Sink<W>,
    written: &mut Written,
) -> Result<(), CacheError> {
    for column in [&head.statistics.accumulated, &head.statistics.step] {
        sink.u64(column.len() as u64)?;
        sink.f32s(column)?;
    }
    sink.u64(head.segments.len() as u64)?;
    head.segments.iter().try_for_each(|segment| segment.export(store, sink, written))
}

/// Reads the segments of an empty head.
fn import_head<R: Read>(
    head: &mut HeadCache,
    store: &mut KvStore,
    layer: usize,
    source: &mut Source<R>,
    known: &mut Known,
    tokens: usize,
) -> Result<(), CacheError> {
    let mut columns = [Vec::new(), Vec::new()];
    for column in &mut columns {
        let len = source.count("observed rows", store.capacity_tokens())?;
        *column = source.f32s("observations", len)?;
    }
    let segments = source.count("segments", MOST_SEGMENTS)?;
    if segments == 0 {
        return Err(broken("a head has no segment"));
    }
    head.segments.clear();
    for index in 0..segments {
        let limits =
            Limits { tokens, capacity_tokens: store.capacity_tokens(), grows: index + 1 == segments };
        let segment = Segment::import(store, layer, source, known, &limits);
        // A head has a segment at any time.
        if segment.is_err() && head.segments.is_empty() {
            head.segments.push(Segment::growing(layer, 0, 0));
        }
        head.segments.push(segment?);
        if (index > 0 || limits.grows) && head.last().magnitudes().is_some() {
            return Err(broken("magnitudes stand where no layers share rows"));
        }
    }
    head.turns = head.segments.iter().find_map(Segment::turns).cloned();
    let rows = head.rows();
    if rows > store.capacity_tokens() || columns.iter().any(|column| column.len() > rows) {
        return Err(broken(format!("a head has {rows} rows and more observations, or more than fit")));
    }
    [head.statistics.accumulated, head.statistics.step] = columns;
    Ok(())
}
