//! Number formats of stored tensors.
//!
//! [`TensorType`] names the formats that model files use, with their block geometry as the GGUF format defines it;
//! [`dequantize`] decodes any of them.

pub(crate) mod block_format;
mod dequantize;
mod tensor_type;

pub use dequantize::dequantize;
pub use tensor_type::TensorType;
