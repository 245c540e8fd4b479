//! Hyper-parameters that no network can have are refused when the model is loaded: a tiny model with one number of its
//! `config.json` changed.

use std::{fs, path::Path};

use kvik_kernels::ThreadPool;
use kvik_model::{Checkpoint, Model};
use serde_json::Value;

/// What is said to the tiny model `name` whose setting at the JSON pointer `key` is `value`.
fn refusal(name: &str, key: &str, value: f64) -> String {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models").join(name);
    let folder = tempfile::tempdir().unwrap();
    fs::copy(original.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    // The older `config.json` has every setting at its root, where the newer one has some of them twice.
    let old = original.join("config_old.json");
    let config = if old.exists() { old } else { original.join("config.json") };
    let mut config: Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    *config.pointer_mut(key).unwrap_or_else(|| panic!("{name} has no {key}")) = value.into();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    match Model::load(&checkpoint, &ThreadPool::new(1), Some(8)) {
        Ok(_) => panic!("{name} was loaded with {key} = {value}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_rotated_part_larger_than_the_head_is_refused() {
    for (share, rule) in [
        (0.0, "must be above 0 and finite"),
        (-1.0, "must be above 0 and finite"),
        (0.01, "must be even and from 2 to the head size"),
        (1.5, "must be even and from 2 to the head size"),
        (2e9, "must be even and from 2 to the head size"),
        (1e19, "must be even and from 2 to the head size"),
    ] {
        let said = refusal("gpt-neox", "/rotary_pct", share);
        assert!(said.contains(rule), "{share}: {said}");
    }
}

#[test]
fn numbers_that_would_make_every_angle_or_score_nan_are_refused() {
    let settings = [
        ("llama", "/rope_theta"),
        ("llama-rope-linear", "/rope_scaling/factor"),
        ("gemma3", "/rope_local_base_freq"),
        ("gemma3", "/query_pre_attn_scalar"),
    ];
    for (name, key) in settings {
        for value in [0.0, -1.0] {
            let said = refusal(name, key, value);
            let setting = key.rsplit('/').next().unwrap();
            assert!(said.contains(setting) && said.contains("must be above 0"), "{name}: {said}");
        }
    }
}
