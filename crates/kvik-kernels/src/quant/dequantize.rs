//! Decoding stored tensors to `f32`: the plain definition of every format.
//!
//! Bit-exact with the reference implementation of the GGUF formats (its results are the golden files of the tests).
//! Kernels never come through here; it is for small tensors (norm weights, biases) and for checking them.

use half::{bf16, f16};

use super::{
    TensorType,
    block_format::{BLOCK, BlockFormat, with_block_format},
};

/// Decodes `bytes`, whole blocks of format `ty`, into `out`.
///
/// # Panics
/// If `bytes` is not exactly [`TensorType::bytes_for`]`(out.len())` bytes.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        ty.bytes_for(out.len()),
        Some(bytes.len()),
        "{} bytes of {ty} do not decode to {} elements",
        bytes.len(),
        out.len()
    );
    with_block_format!(ty, F => dequantize_blocks::<F>(bytes, out), _ => dequantize_floats(ty, bytes, out));
}

fn dequantize_blocks<F: BlockFormat>(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(F::TYPE.block_bytes());
    for (block, elements) in blocks.zip(out.chunks_exact_mut(F::TYPE.block_len())) {
        for (sub, elements) in elements.chunks_exact_mut(BLOCK).enumerate() {
            let codes = F::codes(block, sub).map(u64::to_le_bytes);
            let scales = [F::scale(block, sub, 0), F::scale(block, sub, 1)];
            let min = F::min(block, sub);
            for (i, element) in elements.iter_mut().enumerate() {
                let code = f32::from(codes[i / 8][i % 8]) - f32::from(F::ZERO_POINT);
                *element = scales[i / 16] * code;
                if F::SCALES.has_min() {
                    *element += min;
                }
            }
        }
    }
}

fn dequantize_floats(ty: TensorType, bytes: &[u8], out: &mut [f32]) {
    match ty {
        TensorType::F32 => {
            for (bytes, element) in bytes.as_chunks::<4>().0.iter().zip(out) {
                *element = f32::from_le_bytes(*bytes);
            }
        }
        TensorType::F16 => {
            for (bytes, element) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *element = f16::from_le_bytes(*bytes).to_f32();
            }
        }
        _ => {
            for (bytes, element) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *element = bf16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}
