//! Which tokens stay, against another implementation: the presses of NVIDIA's kvpress on the same weights.
//!
//! `tools/goldens/presses.py` makes the files, in float32; the cache here is bf16 and products may be rounded, so positions whose
//! scores lie close to the lowest kept one may differ, and no others.

mod smollm2;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use kvik_engine::{Engine, EngineOptions};
use kvik_kv::{CacheError, Method, OpenCache, Pipeline};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    model: String,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kv: String,
    budget: usize,
    layers: Vec<Vec<Head>>,
}

#[derive(Deserialize)]
struct Head {
    kept: Vec<u32>,
    close: Vec<u32>,
}

fn golden(name: &str) -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Notes which positions each head has kept.
#[derive(Clone, Default)]
struct Look(Arc<Mutex<Vec<Vec<u32>>>>);

impl Method for Look {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let heads = cache.heads().into_iter();
        *self.0.lock().unwrap() = heads.map(|(layer, head)| cache.positions(layer, head)).collect();
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

/// Holds every case against the engine, and returns the share of kept positions that are the same.
fn compare(engine: &mut Engine, golden: &Golden) -> f64 {
    let (mut same, mut all) = (0, 0);
    for prompt in &golden.prompts {
        for case in &prompt.cases {
            let look = Look::default();
            let pipeline = Pipeline::parse(&case.kv).unwrap();
            let mut session = engine.session_watched(&pipeline, Box::new(look.clone())).unwrap();
            engine.read(&mut session, &prompt.ids, true).unwrap();
            let kept = look.0.lock().unwrap();
            let heads: Vec<&Head> = case.layers.iter().flatten().collect();
            assert_eq!(kept.len(), heads.len());
            for (index, (got, want)) in kept.iter().zip(heads).enumerate() {
                assert_eq!(got.len(), case.budget);
                let missing = want.kept.iter().filter(|position| !got.contains(position));
                let extra = got.iter().filter(|position| !want.kept.contains(position));
                for position in missing.clone().chain(extra) {
                    let Golden { model, .. } = golden;
                    assert!(want.close.contains(position), "{model}, {}, head {index}: {position}", case.kv);
                }
                same += case.budget - missing.count();
                all += case.budget;
            }
        }
    }
    same as f64 / all as f64
}

#[test]
fn small_models_keep_the_tokens_that_the_presses_keep() {
    for golden in golden("presses_tiny.json") {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models").join(&golden.model);
        let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        let share = compare(&mut Engine::load(&folder, &options).unwrap(), &golden);
        assert!(share > 0.98, "{}: {share}", golden.model);
    }
}

#[test]
fn smollm2_keeps_the_tokens_that_the_presses_keep() {
    for golden in golden("presses_smollm2.json") {
        let share = compare(&mut smollm2::engine(1), &golden);
        assert!(share > 0.98, "{share}");
    }
}
