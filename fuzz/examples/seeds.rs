//! Writes the first inputs of each target that starts from a binary file, into `corpus/TARGET/`.

use std::{fs, io, path::Path};

use kvik_kernels::Phase;
use safetensors::{Dtype, tensor::TensorView};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/kvik-kv/tests/layer/mod.rs"]
mod layer;

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
    write_seed("safetensors_header", "two-tensors", &two)?;

    for (which, pipeline) in ["full", "snapkv(budget=40,window=8)+kivi(bits=4,group=16,residual=16)"].iter().enumerate() {
        write_seed("cache_image", &format!("pipeline-{which}"), &cache_image(which as u8, pipeline))?;
    }
    Ok(())
}

/// The cache of 100 tokens under a pipeline, behind the number of the pipeline.
fn cache_image(which: u8, pipeline: &str) -> Vec<u8> {
    let frequencies = vec![1.0, 0.25, 0.0625, 0.015_625];
    let setting = layer::Setting { heads: 4, kv_heads: 2, dim: 8, scale: 0.5, frequencies };
    let mut run = layer::Run::unwatched(&setting, false, 0, pipeline);
    run.step(100, Phase::Prefill);
    run.end_of_prompt();
    let mut image = vec![which];
    run.cache.export(&run.store, &mut image).expect("a vector takes all");
    image
}

fn write_seed(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}
