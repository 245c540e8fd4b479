//! Number formats of stored tensors.
//!
//! [`TensorType`] names the formats that model files use, with their block geometry as the GGUF format defines it.

mod tensor_type;

pub use tensor_type::TensorType;
