//! Every architecture against Hugging Face transformers, on tiny models with random weights.
//!
//! `tools/goldens/tiny_models.py` makes the models and their logits, in float32 throughout. Kvik's cache is bf16, whose
//! rounding is what the tolerance is for: it lies well below what any wrong formula would cause (the script makes every
//! weight matter).

use std::path::{Path, PathBuf};

use kvik_kernels::ThreadPool;
use kvik_kv::KvStore;
use kvik_model::{
    Checkpoint, Model,
    layers::{Logits, Phase, Span},
};
use serde::Deserialize;

/// Root mean square of the difference, over that of the reference logits around their mean.
const TOLERANCE: f64 = 0.01;
/// The same for prompts, whose products may be in bf16.
const PREFILL_TOLERANCE: f64 = 0.02;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Prompt>,
    shape: [usize; 2],
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    first_row: usize,
}

/// Hugging Face folders, and the same kinds of models as GGUF files.
fn tiny_models() -> [PathBuf; 2] {
    ["tiny-models", "tiny-gguf"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data").join(name))
}

/// Logits of all tokens of `ids`, prefilled in chunks.
fn logits(folder: &Path, ids: &[u32], phase: Phase, threads: usize, chunk: usize) -> Vec<f32> {
    let pool = ThreadPool::new(threads);
    let checkpoint = Checkpoint::open(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let model = Model::load(&checkpoint, &pool, Some(ids.len()))
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut store = KvStore::new(model.kv_shape().clone(), 1, ids.len(), chunk).unwrap();
    let mut workspace = model.workspace(threads, ids.len());
    let mut cache = store.sequence();
    let mut out = Vec::new();
    for tokens in ids.chunks(chunk) {
        let span = Span { cache: &mut cache, tokens, logits: Logits::All, phase };
        out.extend_from_slice(&model.forward(&pool, &mut workspace, &mut store, &mut [span]).unwrap());
    }
    out
}

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let spread: f64 = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let error: f64 = got.iter().zip(want).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (error / spread).sqrt()
}

/// Folders with a golden file; each `config_old.json` gives a second one, copied aside with the same weights.
fn cases(scratch: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let mut cases = Vec::new();
    for entry in tiny_models().iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let folder = entry.unwrap().path();
        if !folder.join("golden.json").exists() {
            continue;
        }
        let kind = folder.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let name = format!("{kind}-{}", folder.file_name().unwrap().to_str().unwrap());
        if folder.join("config_old.json").exists() {
            let copy = scratch.join(&name);
            std::fs::create_dir_all(&copy).unwrap();
            for file in std::fs::read_dir(&folder).unwrap() {
                let file = file.unwrap().path();
                std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
            std::fs::rename(copy.join("config_old.json"), copy.join("config.json")).unwrap();
            cases.push((format!("{name} (older config.json)"), copy, folder.clone()));
        }
        cases.push((name, folder.clone(), folder));
    }
    cases.sort();
    cases
}

#[test]
fn logits_equal_the_reference() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = cases(scratch.path());
    assert!(cases.len() >= 50, "the tiny models are missing");
    let mut failed = Vec::new();
    for (name, folder, golden) in cases {
        let bytes = std::fs::read(golden.join("golden.f32")).unwrap();
        let want: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let golden: Golden =
            serde_json::from_slice(&std::fs::read(golden.join("golden.json")).unwrap()).unwrap();
        let vocabulary = golden.shape[1];
        for prompt in &golden.prompts {
            let want = &want[prompt.first_row * vocabulary..][..prompt.ids.len() * vocabulary];
            for (phase, tolerance) in [(Phase::Decode, TOLERANCE), (Phase::Prefill, PREFILL_TOLERANCE)] {
                let got = logits(&folder, &prompt.ids, phase, 1, prompt.ids.len());
                assert_eq!(got.len(), want.len(), "{name}");
                let error = relative_error(&got, want);
                let what = format!("{name}, {} tokens, {phase:?}: {error:.5}", prompt.ids.len());
                println!("{what}");
                if error.is_nan() || error > tolerance {
                    failed.push(what);
                }
                let in_chunks = logits(&folder, &prompt.ids, phase, 2, 3);
                assert!(got == in_chunks, "{name}, {phase:?}: chunks and threads changed the logits");
            }
        }
    }
    assert!(failed.is_empty(), "too far from the reference: {failed:#?}");
}

#[test]
fn the_weights_of_a_step_leave_out_an_embedding_of_its_own() {
    for (name, tied) in [("llama", false), ("llama-tied", true)] {
        let folder = &tiny_models()[0].join(name);
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["tie_word_embeddings"], tied, "{name}");
        let count = |key: &str| config[key].as_u64().unwrap() as usize;
        let (hidden, head_dim) = (count("hidden_size"), count("head_dim"));
        let attention = 2 * head_dim * (count("num_attention_heads") + count("num_key_value_heads"));
        let block = hidden * (attention + 3 * count("intermediate_size"));

        let checkpoint = Checkpoint::open(folder).unwrap();
        let weights = Model::load(&checkpoint, &ThreadPool::new(1), None).unwrap().step_weights();
        assert_eq!(weights.layers.floating, count("num_hidden_layers") * block, "{name}");
        assert_eq!(weights.output.floating, count("vocab_size") * hidden, "{name}");
        assert_eq!(weights.layers.quantized + weights.output.quantized, 0, "{name}");
    }
}
