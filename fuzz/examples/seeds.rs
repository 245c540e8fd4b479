//! Writes the first inputs of each target that starts from a binary file, into `corpus/TARGET/`.

use std::{fs, io, path::Path};

use safetensors::{Dtype, tensor::TensorView};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/kvik-model/tests/model_files/gguf_writer.rs"]
mod gguf_writer;

fn main() -> io::Result<()> {
    write_seed("gguf", "every-kind", &gguf_writer::sample().bytes())?;
    write_seed("gguf", "empty", &gguf_writer::GgufWriter::new(2).bytes())?;

    let view =
        |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).expect("shapes fit");
    let tensors = [("a", view(Dtype::F32, &[2, 1], &[1; 8])), ("b", view(Dtype::BF16, &[3], &[2; 6]))];
    let two = safetensors::serialize(tensors, None).expect("the tensors are well-formed");
    write_seed("safetensors_header", "two-tensors", &two)
}

fn write_seed(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
