//! Metadata values as GGUF stores them.
//!
//! A value is checked in full when the file is opened and decoded again each time it is asked for; nothing of it
//! is copied. An array is a range of the file, decoded element by element.

use super::{GgufError, Problem, cursor::Cursor};
use crate::metadata::{Array, Value};

/// Arrays of arrays are in the format though no known model has one; deeper nesting is refused.
const NESTING_LIMIT: usize = 4;

/// Type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In the order of their numbers in the file.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Reads a type number.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        let offset = cursor.position();
        let id = cursor.u32()?;
        let known = Self::ALL.get(id as usize).copied();
        known.ok_or_else(|| cursor.error_at(offset, Problem::ValueType(id)))
    }

    /// Bytes that the shortest value of this type takes: all values, unless it is a string or an array.
    fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 4 + 8,
        }
    }
}

/// An array in a GGUF file: `bytes` hold `len` elements of one type, all checked.
#[derive(Debug, Clone, Copy)]
pub struct GgufArray<'a> {
    element: ValueType,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.bytes, 0);
        let element = self.element;
        (0..self.len).map_while(move |_| read_value(&mut cursor, element).ok())
    }
}

/// Reads and checks a value of type `ty`.
pub(super) fn read_value<'a>(cursor: &mut Cursor<'a>, ty: ValueType) -> Result<Value<'a>, GgufError> {
    read_nested(cursor, ty, 0)
}

fn read_nested<'a>(cursor: &mut Cursor<'a>, ty: ValueType, depth: usize) -> Result<Value<'a>, GgufError> {
    Ok(match ty {
        ValueType::U8 => Value::Unsigned(u8::from_le_bytes(cursor.array()?).into()),
        ValueType::U16 => Value::Unsigned(u16::from_le_bytes(cursor.array()?).into()),
        ValueType::U32 => Value::Unsigned(cursor.u32()?.into()),
        ValueType::U64 => Value::Unsigned(cursor.u64()?),
        ValueType::I8 => Value::Signed(i8::from_le_bytes(cursor.array()?).into()),
        ValueType::I16 => Value::Signed(i16::from_le_bytes(cursor.array()?).into()),
        ValueType::I32 => Value::Signed(i32::from_le_bytes(cursor.array()?).into()),
        ValueType::I64 => Value::Signed(i64::from_le_bytes(cursor.array()?)),
        ValueType::F32 => Value::Float(f32::from_le_bytes(cursor.array()?).into()),
        ValueType::F64 => Value::Float(f64::from_le_bytes(cursor.array()?)),
        ValueType::Bool => {
            let offset = cursor.position();
            match cursor.array()? {
                [byte @ (0 | 1)] => Value::Bool(byte == 1),
                [byte] => return Err(cursor.error_at(offset, Problem::Bool(byte))),
            }
        }
        ValueType::String => Value::String(cursor.string()?),
        ValueType::Array => Value::Array(Array::Gguf(read_array(cursor, depth)?)),
    })
}

fn read_array<'a>(cursor: &mut Cursor<'a>, depth: usize) -> Result<GgufArray<'a>, GgufError> {
    if depth == NESTING_LIMIT {
        return Err(cursor.error_at(cursor.position(), Problem::Nesting(NESTING_LIMIT)));
    }
    let element = ValueType::read(cursor)?;
    let len = cursor.count(element.least_bytes())?;
    let start = cursor.position();
    match element {
        ValueType::Bool | ValueType::String | ValueType::Array => {
            for _ in 0..len {
                read_nested(cursor, element, depth + 1)?;
            }
        }
        // Any bits are a number.
        _ => drop(cursor.take((len * element.least_bytes()) as u64)?),
    }
    Ok(GgufArray { element, len, bytes: cursor.since(start) })
}

/// The value of type `ty` that fills `bytes`, which [`read_value`] accepted before. Arrays are not walked again.
pub(super) fn decode_checked<'a>(bytes: &'a [u8], ty: ValueType) -> Option<Value<'a>> {
    let mut cursor = Cursor::new(bytes, 0);
    if ty != ValueType::Array {
        return read_value(&mut cursor, ty).ok();
    }
    let element = ValueType::read(&mut cursor).ok()?;
    let len = cursor.count(element.least_bytes()).ok()?;
    let bytes = cursor.take(cursor.left() as u64).ok()?;
    Some(Value::Array(Array::Gguf(GgufArray { element, len, bytes })))
}
