//! The tensor table of a GGUF file: names, formats, shapes, and where the data lies.

use std::{borrow::Cow, ops::Range};

use kvik_kernels::quant::TensorType;

use super::{GgufError, Place, Problem, cursor::Cursor};
use crate::tensor::{StoredType, TensorInfo};

/// The format stores at most four dimensions.
const DIMENSIONS_LIMIT: u32 = 4;

/// The shortest entry: an empty name, no dimensions, the type and the offset.
pub(super) const LEAST_ENTRY_BYTES: usize = 8 + 4 + 4 + 8;

/// Formats that GGUF defines and Kvik does not run: number, name, elements and bytes of a block.
#[rustfmt::skip]
const FOREIGN_TYPES: [(u32, &str, usize, usize); 23] = [
    (9, "Q8_1", 32, 40), (10, "Q2_K", 256, 84), (11, "Q3_K", 256, 110), (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98), (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82), (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56), (34, "TQ1_0", 256, 54), (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36), (41, "Q1_0", 128, 18),
];

/// An entry of the table, read and not yet held against the file's size.
pub(super) struct Entry<'a> {
    name: &'a str,
    /// Outermost first; the file has them the other way round.
    shape: Vec<u64>,
    type_id: u32,
    /// Of the data from the start of the data section, in bytes.
    offset: u64,
    /// Of the entry itself in the file, in bytes.
    position: usize,
}

impl<'a> Entry<'a> {
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, GgufError> {
        cursor.enter(Place::TensorTable);
        let position = cursor.position();
        let name = cursor.string()?;
        cursor.enter(Place::Tensor(name.to_owned()));
        let rank = cursor.u32()?;
        if rank > DIMENSIONS_LIMIT {
            return Err(cursor.error_at(cursor.position() - 4, Problem::Dimensions(rank)));
        }
        let mut shape = (0..rank).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok(Self { name, shape, type_id: cursor.u32()?, offset: cursor.u64()?, position })
    }

    fn error(&self, problem: Problem) -> GgufError {
        GgufError { problem, place: Place::Tensor(self.name.to_owned()), offset: self.position }
    }

    /// The tensor with its byte range, which may still reach past the end of the file.
    fn locate(&self, data_start: usize, alignment: usize) -> Result<TensorInfo, GgufError> {
        let overflow = || self.error(Problem::Overflow(self.shape.clone()));
        let shape: Vec<usize> = self
            .shape
            .iter()
            .map(|&size| size.try_into())
            .collect::<Result<_, _>>()
            .map_err(|_| overflow())?;
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let elements = elements.ok_or_else(overflow)?;
        let offset = usize::try_from(self.offset).ok().filter(|offset| offset % alignment == 0);
        let offset =
            offset.ok_or_else(|| self.error(Problem::Misaligned { offset: self.offset, alignment }))?;
        let (ty, block) = describe_type(self.type_id);
        let range = match block {
            None => None,
            Some((block_len, block_bytes)) => {
                let cols = shape.last().copied().unwrap_or(1);
                if cols % block_len != 0 {
                    return Err(self.error(Problem::RowLength { cols, block_len, ty: ty.to_string() }));
                }
                let start = data_start.checked_add(offset).ok_or_else(overflow)?;
                let bytes = (elements / block_len).checked_mul(block_bytes).ok_or_else(overflow)?;
                Some(start..start.checked_add(bytes).ok_or_else(overflow)?)
            }
        };
        Ok(TensorInfo { name: self.name.to_owned(), ty, shape, range })
    }
}

/// The format with this number, with the elements and bytes of its blocks where they are known.
fn describe_type(id: u32) -> (StoredType, Option<(usize, usize)>) {
    if let Some(ty) = TensorType::from_gguf_id(id) {
        return (StoredType::Supported(ty), Some((ty.block_len(), ty.block_bytes())));
    }
    match FOREIGN_TYPES.iter().find(|foreign| foreign.0 == id) {
        Some(&(_, name, len, bytes)) => (StoredType::Foreign(Cow::Borrowed(name)), Some((len, bytes))),
        None => (StoredType::Foreign(Cow::Owned(format!("type {id}"))), None),
    }
}

/// Places the tensors in the data section, in table order.
pub(super) fn locate_all(
    entries: &[Entry<'_>],
    data_start: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<Vec<TensorInfo>, GgufError> {
    let tensors: Vec<TensorInfo> =
        entries.iter().map(|entry| entry.locate(data_start, alignment)).collect::<Result<_, _>>()?;

    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_by_key(|&index| entries[index].name);
    if let Some(twins) = by_name.windows(2).find(|twins| entries[twins[0]].name == entries[twins[1]].name) {
        return Err(entries[twins[1]].error(Problem::DuplicateTensor));
    }

    let mut by_start: Vec<(Range<usize>, usize)> = tensors
        .iter()
        .enumerate()
        .filter_map(|(index, tensor)| Some((tensor.range.clone()?, index)))
        .collect();
    by_start.retain(|(range, _)| !range.is_empty());
    by_start.sort_by_key(|(range, _)| range.start);
    if let Some(pair) = by_start.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        return Err(entries[pair[1].1].error(Problem::Overlap(tensors[pair[0].1].name.clone())));
    }

    if let Some((range, index)) = by_start.last().filter(|(range, _)| range.end > file_bytes) {
        let missing = (range.end - file_bytes) as u64;
        return Err(entries[*index].error(Problem::DataCutOff { missing }));
    }
    Ok(tensors)
}
