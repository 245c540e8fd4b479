//! Numbers, bytes and texts of an exported cache, with a checksum over all of them unless somebody else has one.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

use crate::CacheError;

/// Bytes that are read at once into memory that grows with them: a length that is a lie costs no more.
const PIECE: usize = 1 << 16;

fn broken(reason: impl Into<String>) -> CacheError {
    CacheError::Import(reason.into())
}

/// Where an exported cache goes.
pub(crate) struct Sink<W> {
    target: W,
    checksum: Option<Sha256>,
}

impl<W: Write> Sink<W> {
    pub(crate) fn new(target: W) -> Self {
        Self { target, checksum: Some(Sha256::new()) }
    }

    /// Without a checksum.
    pub(crate) fn bare(target: W) -> Self {
        Self { target, checksum: None }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        if let Some(checksum) = &mut self.checksum {
            checksum.update(bytes);
        }
        self.target
            .write_all(bytes)
            .map_err(|source| CacheError::Io { what: "writing an exported cache".to_owned(), source })
    }

    pub(crate) fn u8(&mut self, number: u8) -> Result<(), CacheError> {
        self.bytes(&[number])
    }

    pub(crate) fn u32(&mut self, number: u32) -> Result<(), CacheError> {
        self.bytes(&number.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, number: u64) -> Result<(), CacheError> {
        self.bytes(&number.to_le_bytes())
    }

    /// Bytes with their number.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        self.u64(bytes.len() as u64)?;
        self.bytes(bytes)
    }

    pub(crate) fn u32s(&mut self, numbers: impl IntoIterator<Item = u32>) -> Result<(), CacheError> {
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u32::to_le_bytes).collect();
        self.bytes(&bytes)
    }

    pub(crate) fn f32s(&mut self, numbers: &[f32]) -> Result<(), CacheError> {
        self.u32s(numbers.iter().map(|number| number.to_bits()))
    }

    /// Writes the checksum: the end.
    pub(crate) fn finish(mut self) -> Result<(), CacheError> {
        if let Some(checksum) = self.checksum.take() {
            self.bytes(&checksum.finalize())?;
        }
        self.target
            .flush()
            .map_err(|source| CacheError::Io { what: "writing an exported cache".to_owned(), source })
    }

    /// The checksum of what was written.
    pub(crate) fn checksum(self) -> [u8; 32] {
        self.checksum.unwrap_or_default().finalize().into()
    }
}

/// Where an exported cache comes from. Nothing that it says is believed.
pub(crate) struct Source<R> {
    source: R,
    checksum: Option<Sha256>,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, checksum: Some(Sha256::new()) }
    }

    /// Of what was written without a checksum.
    pub(crate) fn bare(source: R) -> Self {
        Self { source, checksum: None }
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CacheError> {
        self.source.read_exact(bytes).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => broken("it ends too early"),
            _ => CacheError::Io { what: "reading an exported cache".to_owned(), source },
        })?;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(&*bytes);
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CacheError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CacheError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CacheError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CacheError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A yes or no.
    pub(crate) fn flag(&mut self, what: &str) -> Result<bool, CacheError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(broken(format!("{what} is {other} where 0 or 1 stands"))),
        }
    }

    /// A number of things, of which there cannot be more than `most`.
    pub(crate) fn count(&mut self, what: &str, most: usize) -> Result<usize, CacheError> {
        let count = self.u64()?;
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= most)
            .ok_or_else(|| broken(format!("it says that there are {count} {what}, and at most {most} fit")))
    }

    /// Bytes with their number.
    pub(crate) fn blob(&mut self, what: &str, most: usize) -> Result<Vec<u8>, CacheError> {
        let len = self.count(what, most)?;
        self.vec(len)
    }

    pub(crate) fn text(&mut self, what: &str, most: usize) -> Result<String, CacheError> {
        String::from_utf8(self.blob(what, most)?).map_err(|_| broken(format!("its {what} are no UTF-8")))
    }

    fn vec(&mut self, len: usize) -> Result<Vec<u8>, CacheError> {
        let mut bytes = Vec::with_capacity(len.min(PIECE));
        while bytes.len() < len {
            let start = bytes.len();
            bytes.resize(len.min(start + PIECE), 0);
            self.fill(&mut bytes[start..])?;
        }
        Ok(bytes)
    }

    pub(crate) fn u32s(&mut self, len: usize) -> Result<Vec<u32>, CacheError> {
        let bytes = self.vec(4 * len)?;
        Ok(bytes.chunks_exact(4).map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]])).collect())
    }

    /// Finite numbers.
    pub(crate) fn f32s(&mut self, what: &str, len: usize) -> Result<Vec<f32>, CacheError> {
        let numbers: Vec<f32> = self.u32s(len)?.into_iter().map(f32::from_bits).collect();
        if numbers.iter().all(|number| number.is_finite()) {
            Ok(numbers)
        } else {
            Err(broken(format!("of its {what} some are infinite or no numbers")))
        }
    }

    /// Checks the checksum: the end.
    pub(crate) fn finish(mut self) -> Result<(), CacheError> {
        let Some(computed) = self.checksum.take().map(Sha256::finalize) else { return Ok(()) };
        if self.array::<32>()? == *computed {
            Ok(())
        } else {
            Err(broken("its checksum is another: it was damaged"))
        }
    }
}
