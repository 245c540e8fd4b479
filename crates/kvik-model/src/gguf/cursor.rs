//! A reading position in the bytes of a file, which cannot leave them.

use super::{GgufError, Place, Problem};

/// Reads little-endian values one after the other. Every read checks the bytes that are left first.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    place: Place,
}

impl<'a> Cursor<'a> {
    /// A cursor at `position` of `bytes`, which must not be past their end.
    pub(super) fn new(bytes: &'a [u8], position: usize) -> Self {
        Self { bytes, position: position.min(bytes.len()), place: Place::Header }
    }

    /// Says which part of the file the following reads belong to, for their errors.
    pub(super) fn enter(&mut self, place: Place) {
        self.place = place;
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The bytes from `start`, an earlier position, to here.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.bytes[start..self.position]
    }

    /// An error at `offset` in the part of the file that is being read.
    pub(super) fn error_at(&self, offset: usize, problem: Problem) -> GgufError {
        GgufError { problem, place: self.place.clone(), offset }
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], GgufError> {
        let left = self.left();
        let taken = usize::try_from(count).ok().filter(|&count| count <= left);
        let Some(taken) = taken else {
            return Err(self.error_at(self.position, Problem::CutOff { needed: count, left }));
        };
        let start = self.position;
        self.position += taken;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least_bytes` each, checked against the bytes that are left.
    pub(super) fn count(&mut self, least_bytes: usize) -> Result<usize, GgufError> {
        let offset = self.position;
        let count = self.u64()?;
        let left = self.left();
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= left / least_bytes)
            .ok_or_else(|| self.error_at(offset, Problem::Count { count, left }))
    }

    /// A string: its length in 64 bits, then that many bytes of UTF-8.
    pub(super) fn string(&mut self) -> Result<&'a str, GgufError> {
        let length = self.u64()?;
        let start = self.position;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|error| self.error_at(start + error.valid_up_to(), Problem::Utf8))
    }
}
