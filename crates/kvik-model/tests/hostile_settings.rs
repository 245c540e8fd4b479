//! Settings that no network can be built with: every setting of a tiny model of each kind is replaced by values
//! that are wrong, and the model is refused or runs, but does not panic.

use std::{fs, path::Path};

use kvik_kernels::ThreadPool;
use kvik_kv::KvStore;
use kvik_model::{
    Checkpoint, Model,
    layers::{Logits, Phase, Span},
};
use serde_json::{Value, json};

const CONTEXT_TOKENS: usize = 12;

/// Between them these have every setting that a network is built from.
const MODELS: [&str; 6] =
    ["gemma3", "gpt-neox", "llama-rope-yarn", "opt-post-norm", "phi3-longrope", "qwen2-window"];

/// Loads the model in `folder` and runs some tokens; what it says if it cannot.
fn run(folder: &Path) -> Result<(), String> {
    let pool = ThreadPool::new(1);
    let checkpoint = Checkpoint::open(folder).map_err(|error| error.to_string())?;
    let model = Model::load(&checkpoint, &pool, Some(CONTEXT_TOKENS)).map_err(|error| error.to_string())?;
    let mut store = KvStore::new(model.kv_shape().clone(), 1, CONTEXT_TOKENS, CONTEXT_TOKENS)
        .map_err(|error| error.to_string())?;
    let mut workspace = model.workspace(1, CONTEXT_TOKENS);
    let mut cache = store.sequence();
    for tokens in [&[1, 2, 3, 4, 5][..], &[6]] {
        let span = Span { cache: &mut cache, tokens, logits: Logits::Last, phase: Phase::Prefill };
        model.forward(&pool, &mut workspace, &mut store, &mut [span]).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn wrong_values() -> Vec<Value> {
    let mut values = vec![Value::Null, json!("nonsense"), json!(true), json!([]), json!([0]), json!({})];
    values.extend([-1.5, -1.0, 0.0, 1e-45, 0.03, 0.37, 7.5, 1e30, -1e30].map(|number| json!(number)));
    values.extend([0u64, 1, 2, 3, 5, 1 << 24, u64::from(u32::MAX), u64::MAX].map(|number| json!(number)));
    values
}

/// Calls `visit` with every variant of `config` in which one value, however deep, is a wrong one.
fn for_each_variant(config: &mut Value, at: &str, visit: &mut dyn FnMut(&Value)) {
    let Value::Object(entries) = config.pointer(at).unwrap() else { return };
    for key in entries.keys().cloned().collect::<Vec<_>>() {
        let path = format!("{at}/{key}");
        let right = config.pointer(&path).unwrap().clone();
        for wrong in wrong_values() {
            *config.pointer_mut(&path).unwrap() = wrong;
            visit(config);
        }
        *config.pointer_mut(&path).unwrap() = right;
        for_each_variant(config, &path, visit);
    }
}

#[test]
fn wrong_settings_are_refused_or_run() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models");
    let scratch = tempfile::tempdir().unwrap();
    let (mut refused, mut ran) = (0, 0);
    for name in MODELS {
        let (folder, copy) = (models.join(name), scratch.path().join(name));
        fs::create_dir(&copy).unwrap();
        fs::copy(folder.join("model.safetensors"), copy.join("model.safetensors")).unwrap();
        for name in ["config.json", "config_old.json"] {
            let Ok(text) = fs::read(folder.join(name)) else { continue };
            let mut config: Value = serde_json::from_slice(&text).unwrap();
            for_each_variant(&mut config, "", &mut |variant| {
                fs::write(copy.join("config.json"), variant.to_string()).unwrap();
                match run(&copy) {
                    Ok(()) => ran += 1,
                    Err(_) => refused += 1,
                }
            });
        }
    }
    // Most settings do not concern the network, and many wrong values of the others are only unusual.
    assert!(refused > 500 && ran > 500, "{refused} refused, {ran} ran");
}
