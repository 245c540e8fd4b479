//! A segment as bytes, and back.

use std::{
    collections::HashMap,
    io::{Read, Write},
    sync::Arc,
};

use kvik_kernels::attention::{Codec, PlaneKind, TILE_TOKENS, TileShape, codec};

use super::{Columns, EncodedRows, KeyRotation, Magnitudes, PLANES, Plane, RowPositions, Segment, release};
use crate::{
    export::{Sink, Source},
    spilled::{Glance, ReadBlocks},
    store::{Block, CacheError, KvStore},
    tally::Encoding,
};

/// Bytes of a codec's name.
const NAME_BYTES: usize = 256;

/// Blocks that were written already, by their number in the file.
pub(crate) type Written = HashMap<Block, u32>;

/// Blocks and codecs that were read already.
#[derive(Default)]
pub(crate) struct Known {
    blocks: Vec<Block>,
    codecs: HashMap<String, Arc<dyn Codec>>,
}

/// What a segment must fit.
pub(crate) struct Limits {
    /// Tokens of the sequence: every position lies before.
    pub(crate) tokens: usize,
    /// Tokens that the sequence may grow to.
    pub(crate) capacity_tokens: usize,
    /// True for the last segment of a head, which grows on.
    pub(crate) grows: bool,
}

fn broken(reason: impl Into<String>) -> CacheError {
    CacheError::Import(reason.into())
}

impl Segment {
    /// Writes the segment. Blocks that other segments of the file hold as well are written once.
    pub(crate) fn export<W: Write>(
        &self,
        store: &KvStore,
        sink: &mut Sink<W>,
        written: &mut Written,
    ) -> Result<(), CacheError> {
        sink.u64(self.dropped as u64)?;
        sink.u64(self.len as u64)?;
        self.export_columns(sink)?;
        for planes in self.tiles.iter().take(self.tiles().saturating_sub(self.dropped)) {
            for plane in planes {
                sink.u8(u8::from(plane.rows.is_some()) | u8::from(plane.encoded.is_some()) << 1)?;
                if let Some(block) = plane.rows {
                    export_block(store, sink, written, block)?;
                }
                if let Some(EncodedRows { codec, block, rows }) = &plane.encoded {
                    sink.blob(codec.name().as_bytes())?;
                    sink.u8(*rows as u8)?;
                    export_block(store, sink, written, *block)?;
                }
            }
        }
        Ok(())
    }

    fn export_columns<W: Write>(&self, sink: &mut Sink<W>) -> Result<(), CacheError> {
        let Columns { positions, bias, magnitudes, shifts } = &self.columns;
        match positions {
            RowPositions::From(start) => {
                sink.u8(0)?;
                sink.u32(*start)?;
            }
            RowPositions::Each(positions) => {
                sink.u8(1)?;
                sink.u32s(positions[..self.len].iter().copied())?;
            }
        }
        sink.u8(u8::from(bias.is_some()))?;
        if let Some(bias) = bias {
            sink.f32s(&bias[..self.len])?;
        }
        sink.u8(u8::from(magnitudes.is_some()))?;
        if let Some(Magnitudes { keys, values }) = magnitudes {
            sink.f32s(&keys[..self.len])?;
            sink.f32s(&values[..self.len])?;
        }
        sink.u8(u8::from(shifts.is_some()))?;
        if let Some(shifts) = shifts {
            sink.u32s(shifts.by[..self.len].iter().copied())?;
        }
        sink.u8(u8::from(matches!(self.rotation, KeyRotation::AtPosition(_))))
    }

    /// Reads a segment of `layer` into blocks of `store`, which holds none of them after an error.
    pub(crate) fn import<R: Read>(
        store: &mut KvStore,
        layer: usize,
        source: &mut Source<R>,
        known: &mut Known,
        limits: &Limits,
    ) -> Result<Self, CacheError> {
        let dropped = source.count("tiles left behind", limits.capacity_tokens / TILE_TOKENS)?;
        let len = source.count("rows", limits.capacity_tokens)?;
        if dropped > len / TILE_TOKENS || dropped > 0 && store.layer(layer).window.is_none() {
            return Err(broken(format!("{dropped} tiles were left behind of {len} rows")));
        }
        let room = if limits.grows { limits.capacity_tokens } else { len };
        let mut segment = Self::growing(layer, 0, room);
        (segment.dropped, segment.len) = (dropped, len);
        segment.import_columns(store, source, limits)?;
        for tile in 0..len.div_ceil(TILE_TOKENS) - dropped {
            let rows = (len - (dropped + tile) * TILE_TOKENS).min(TILE_TOKENS);
            let encoding = segment.encoding_of_rows();
            let mut planes = [Plane::default(), Plane::default()];
            for kind in PLANES {
                let size = PlaneSize { shape: store.layer(layer).tile(), kind, rows };
                if let Err(error) =
                    import_plane(store, size, encoding, source, known, &mut planes[kind as usize])
                {
                    release(store, planes);
                    segment.release(store);
                    return Err(error);
                }
            }
            segment.tiles.push(planes);
        }
        Ok(segment)
    }

    fn import_columns<R: Read>(
        &mut self,
        store: &mut KvStore,
        source: &mut Source<R>,
        limits: &Limits,
    ) -> Result<(), CacheError> {
        let (len, tokens) = (self.len, limits.tokens);
        if source.flag("positions")? {
            let positions = source.u32s(len)?;
            if self.dropped > 0 || positions.iter().any(|&position| position as usize >= tokens) {
                return Err(broken(format!("a row stands beyond the {tokens} tokens of the sequence")));
            }
            self.set_positions(positions);
        } else {
            let start = source.u32()?;
            let end = start as usize + len;
            if end > tokens || limits.grows && len > 0 && end != tokens {
                return Err(broken(format!("rows end at {end} in a sequence of {tokens} tokens")));
            }
            self.columns = Columns::from(start);
        }
        if source.flag("bias")? {
            let bias = source.f32s("biases", len)?;
            self.set_bias(bias);
        }
        if source.flag("magnitudes")? {
            let keys = source.f32s("magnitudes", len)?;
            let values = source.f32s("magnitudes", len)?;
            self.set_magnitudes(Magnitudes { keys, values });
        }
        if source.flag("shifts")? {
            let by = source.u32s(len)?;
            let turns = store.turns(self.layer);
            let turns = turns.ok_or_else(|| broken("keys are moved, and the model does not rotate them"))?;
            self.set_shifts(&turns, by);
        }
        if source.flag("rotation")? {
            let rotary = store.shape().rotary[self.layer].clone();
            let rotary = rotary.ok_or_else(|| broken("keys wait for a rotation, and the model has none"))?;
            self.rotation = KeyRotation::AtPosition(rotary);
        }
        Ok(())
    }
}

fn export_block<W: Write>(
    store: &KvStore,
    sink: &mut Sink<W>,
    written: &mut Written,
    block: Block,
) -> Result<(), CacheError> {
    let next = written.len() as u32;
    let number = *written.entry(block).or_insert(next);
    sink.u32(number)?;
    if number != next {
        return Ok(());
    }
    let (glance, failure) = Glance::at(store, std::iter::once(block));
    failure.map_or(Ok(()), Err)?;
    sink.bytes(glance.bytes(block))
}

/// A plane that is to be read.
#[derive(Clone, Copy)]
struct PlaneSize {
    shape: TileShape,
    kind: PlaneKind,
    rows: usize,
}

/// Reads a plane of a tile into `plane`, piece by piece, so that after an error it holds what was taken so far. Its bf16 rows
/// count as `of_rows`.
fn import_plane<R: Read>(
    store: &mut KvStore,
    PlaneSize { shape, kind, rows }: PlaneSize,
    of_rows: Encoding,
    source: &mut Source<R>,
    known: &mut Known,
    plane: &mut Plane,
) -> Result<(), CacheError> {
    let parts = source.u8()?;
    if parts & 1 != 0 {
        let bytes = 2 * shape.plane(kind).1;
        plane.rows = Some(import_block(store, source, known, bytes, of_rows)?);
    }
    if parts & 2 != 0 {
        let codec = import_codec(source, known)?;
        let encoded = usize::from(source.u8()?);
        let whole = encoded.is_multiple_of(codec.group_rows(kind)) || encoded == rows;
        if !(1..=rows).contains(&encoded) || !whole {
            return Err(broken(format!("{encoded} rows of a tile are said to be in {}", codec.name())));
        }
        let kind_of_codes = store.tally.encoding(codec.kind());
        let bytes = codec.block_bytes(kind, shape.plane(kind).0);
        let block = import_block(store, source, known, bytes, kind_of_codes)?;
        plane.encoded = Some(EncodedRows { codec, block, rows: encoded });
    }
    let encoded = plane.encoded.as_ref().map_or(0, |encoded| encoded.rows);
    if parts > 3 || plane.rows.is_none() && encoded < rows {
        return Err(broken("a tile has rows that are nowhere"));
    }
    Ok(())
}

fn import_codec<R: Read>(source: &mut Source<R>, known: &mut Known) -> Result<Arc<dyn Codec>, CacheError> {
    let name = source.text("bytes of a codec's name", NAME_BYTES)?;
    if let Some(codec) = known.codecs.get(&name) {
        return Ok(Arc::clone(codec));
    }
    let found = codec(&name).ok_or_else(|| broken(format!("no encoding is called '{name}'")))?;
    known.codecs.insert(name, Arc::clone(&found));
    Ok(found)
}

/// A new block, or one more holder of one that was read before.
fn import_block<R: Read>(
    store: &mut KvStore,
    source: &mut Source<R>,
    known: &mut Known,
    bytes: usize,
    encoding: Encoding,
) -> Result<Block, CacheError> {
    let number = source.u32()? as usize;
    let class = store.class_for(bytes)?;
    if let Some(&block) = known.blocks.get(number) {
        if store.class(block) != class {
            return Err(broken(format!("block {number} is used for planes of two sizes")));
        }
        return Ok(store.share(block));
    }
    if number != known.blocks.len() {
        return Err(broken(format!("block {number} comes after {} others", known.blocks.len())));
    }
    let block = store.take(class, encoding)?;
    if let Err(error) = source.fill(store.bytes_mut(block)) {
        store.release(block);
        return Err(error);
    }
    known.blocks.push(block);
    Ok(block)
}
