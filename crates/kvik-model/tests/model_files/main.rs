//! Opening model files: what well-formed ones say, and that no damaged one does harm.
//!
//! "No harm" is measured: a damaged file gives an error or a smaller model, never a panic, and the memory that
//! opening it takes at its peak is bounded by a small multiple of its size.

mod allocation;
mod folders;
mod gguf;
mod gguf_damage;
mod gguf_writer;
mod safetensors;

use std::path::Path;

use kvik_model::Checkpoint;

/// What an error message and a checkpoint's fixed parts may take, whatever the size of the file.
const FIXED_BYTES: usize = 16 << 10;

/// Opens the model at `path` and looks at all there is in it. An error comes back as its sentence.
fn explore(path: &Path) -> Result<Checkpoint, String> {
    let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
    for (key, value) in checkpoint.metadata().iter() {
        assert!(checkpoint.metadata().contains(&key));
        assert!(!value.to_string().is_empty());
    }
    for info in checkpoint.tensors() {
        let Ok(tensor) = checkpoint.tensor(&info.name) else { continue };
        assert_eq!(tensor.rows() * tensor.row_bytes(), tensor.bytes.len());
        assert_eq!(Some(tensor.bytes.len()), info.bytes());
        checkpoint.release(&tensor, 0..tensor.rows());
    }
    assert!(checkpoint.tensor("no such tensor").is_err());
    Ok(checkpoint)
}

/// [`explore`], with an assertion that it took no more memory than the file's `bytes` justify.
fn explore_bounded(path: &Path, bytes: usize) -> Result<Checkpoint, String> {
    let (result, peak) = allocation::peak_bytes_of(|| explore(path));
    assert!(peak <= 16 * bytes + FIXED_BYTES, "{peak} bytes were allocated for a file of {bytes}");
    result
}

/// Writes `bytes` to `path` and opens it.
fn explore_bytes(path: &Path, bytes: &[u8]) -> Result<Checkpoint, String> {
    std::fs::write(path, bytes).unwrap();
    explore_bounded(path, bytes.len())
}
