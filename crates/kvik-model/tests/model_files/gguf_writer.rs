//! Writes small GGUF files, well-formed or not, and remembers where their counts and lengths lie.

/// A GGUF file in the making.
#[derive(Clone)]
pub struct GgufWriter {
    version: u32,
    alignment: usize,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<TensorEntry>,
}

#[derive(Clone)]
struct TensorEntry {
    name: String,
    type_id: u32,
    /// Innermost first.
    dimensions: Vec<u64>,
    offset: u64,
    data: Vec<u8>,
}

/// Number of a value type in the file.
pub mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// An array value: element type, count, elements.
pub fn array(element: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

/// A file that has each kind of thing in it.
pub fn sample() -> GgufWriter {
    let nested = array(
        value_type::ARRAY,
        &[array(value_type::I32, &[vec![1, 0, 0, 0]]), array(value_type::BOOL, &[vec![1], vec![0]])],
    );
    GgufWriter::new(3)
        .pair("name", value_type::STRING, &string("größe"))
        .pair(
            "tokens",
            value_type::ARRAY,
            &array(value_type::STRING, &[string("a"), string("bc"), string("")]),
        )
        .pair("nested", value_type::ARRAY, &nested)
        .pair("eps", value_type::F64, &1e-6f64.to_le_bytes())
        .alignment(8)
        .tensor("q", 8, &[32, 2], &[7; 68])
        .tensor("f", 0, &[3], &[1; 12])
        .tensor("x", 20, &[32], &[3; 18])
}

impl GgufWriter {
    pub fn new(version: u32) -> Self {
        Self { version, alignment: 32, pairs: Vec::new(), tensors: Vec::new() }
    }

    pub fn pair(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        self.pairs.push([&string(key)[..], &ty.to_le_bytes(), value].concat());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.pair(key, value_type::U32, &value.to_le_bytes())
    }

    pub fn alignment(mut self, bytes: usize) -> Self {
        self.alignment = bytes;
        self.u32("general.alignment", bytes as u32)
    }

    /// Adds a tensor behind those that are there.
    pub fn tensor(self, name: &str, type_id: u32, dimensions: &[u64], data: &[u8]) -> Self {
        let end = self.tensors.iter().map(|tensor| tensor.offset as usize + tensor.data.len()).max();
        let offset = end.unwrap_or(0).next_multiple_of(self.alignment) as u64;
        self.tensor_at(offset, name, type_id, dimensions, data)
    }

    /// Adds a tensor that claims to lie at `offset` of the data section.
    pub fn tensor_at(
        mut self,
        offset: u64,
        name: &str,
        type_id: u32,
        dimensions: &[u64],
        data: &[u8],
    ) -> Self {
        let (name, dimensions, data) = (name.to_owned(), dimensions.to_vec(), data.to_vec());
        self.tensors.push(TensorEntry { name, type_id, dimensions, offset, data });
        self
    }

    /// Everything before the tensors' data.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.pairs.len() as u64).to_le_bytes());
        bytes.extend(self.pairs.concat());
        for tensor in &self.tensors {
            bytes.extend(string(&tensor.name));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            bytes.extend(tensor.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            bytes.extend(tensor.type_id.to_le_bytes());
            bytes.extend(tensor.offset.to_le_bytes());
        }
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        let data_start = bytes.len().next_multiple_of(self.alignment);
        for tensor in &self.tensors {
            let start = data_start + tensor.offset as usize;
            bytes.resize(bytes.len().max(start + tensor.data.len()), 0);
            bytes[start..start + tensor.data.len()].copy_from_slice(&tensor.data);
        }
        bytes
    }
}
