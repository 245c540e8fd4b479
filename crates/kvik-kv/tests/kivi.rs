//! KIVI against a numpy model of the paper: when rows are coded, and what they read as.

mod layer;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use kvik_kernels::{Phase, attention::PlaneKind};
use kvik_kv::{CacheError, Method, OpenCache, Pipeline};
use serde::Deserialize;

use layer::{Run, Setting};

#[derive(Deserialize)]
struct Golden {
    kv_heads: usize,
    dim: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    bits: usize,
    group: usize,
    residual: usize,
    prompt: usize,
    steps: usize,
    /// Coded keys and values after the prompt and after each token.
    coded: Vec<[usize; 2]>,
    /// `[kv_heads][plane][rows, dim]`.
    heads: Vec<Vec<Vec<Vec<Option<f32>>>>>,
}

/// How many rows of a plane are coded, and what all of them read as.
type Plane = (usize, Vec<f32>);

/// Looks at the planes of each head.
#[derive(Clone, Default)]
struct Look(Arc<Mutex<Vec<[Plane; 2]>>>);

impl Look {
    fn look(&self, cache: &OpenCache<'_>) {
        let plane = |layer: usize, kv_head: usize, plane: PlaneKind| {
            let coded =
                cache.segments(layer, kv_head).iter().map(|segment| segment.encoded_rows(plane)).sum();
            (coded, cache.plane(layer, kv_head, plane, 0..cache.rows(layer, kv_head)))
        };
        let heads = cache.heads().into_iter();
        let read = heads
            .map(|(layer, head)| [PlaneKind::Keys, PlaneKind::Values].map(|kind| plane(layer, head, kind)));
        *self.0.lock().unwrap() = read.collect();
    }
}

impl Method for Look {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.look(cache);
        Ok(())
    }
    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.look(cache);
        Ok(())
    }
    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

#[test]
fn rows_are_coded_when_and_as_the_papers_model_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods/kivi.json");
    let golden: Golden = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let Golden { kv_heads, dim, .. } = golden;
    let setting = Setting { heads: kv_heads, kv_heads, dim, scale: 0.3, frequencies: Vec::new() };
    for case in &golden.cases {
        let Case { bits, group, residual, .. } = case;
        let pipeline = format!("kivi(bits={bits},group={group},residual={residual})");
        let mut run = Run::unwatched(&setting, false, 0, "full");
        let mut methods = Pipeline::parse(&pipeline).unwrap().methods(run.store.shape()).unwrap();
        let look = Look::default();
        methods.push(Box::new(look.clone()));
        run.cache = run.store.sequence_of(methods);

        run.step(case.prompt, Phase::Prefill);
        run.end_of_prompt();
        for (step, coded) in case.coded.iter().enumerate() {
            if step > 0 {
                run.step(1, Phase::Decode);
            }
            for head in look.0.lock().unwrap().iter() {
                assert_eq!([head[0].0, head[1].0], *coded, "{pipeline}, step {step}");
            }
        }
        let read = look.0.lock().unwrap();
        let (mut open, mut all) = (0, 0);
        for (got, want) in read.iter().flatten().zip(case.heads.iter().flatten()) {
            assert_eq!(got.1.len(), (case.prompt + case.steps) * dim);
            for (&got, want) in got.1.iter().zip(want.iter().flatten()) {
                all += 1;
                // Sums in f32 may round to the next bf16 number.
                match want {
                    Some(want) => {
                        assert!((got - want).abs() <= want.abs() / 128.0 + 1e-4, "{pipeline}: {got} {want}")
                    }
                    None => open += 1,
                }
            }
        }
        assert!(open * 10 < all, "{open} of {all} say nothing");
    }
}

#[test]
fn coded_rows_count_as_codes_and_the_rest_as_they_came() {
    let setting = Setting { heads: 2, kv_heads: 2, dim: 32, scale: 0.3, frequencies: Vec::new() };
    let mut run = Run::unwatched(&setting, false, 0, "kivi(bits=2,group=32,residual=64)");
    run.step(64 * 4, Phase::Prefill);
    run.end_of_prompt();
    let parts = run.store.bytes_by_encoding();
    let (plane, codes) = (64 * 32 * 2, 64 * 32 / 4 + 64 * 32 / 32 * 4);
    // Of two heads and four tiles, all keys are coded, for whole residuals of them are, and values but the last 64.
    let bytes: Vec<_> = parts.iter().map(|part| (&*part.encoding, part.ram_bytes, part.file_bytes)).collect();
    assert_eq!(bytes, [("bf16", 2 * plane, 0), ("affine-2-bits", 2 * (4 + 3) * codes, 0)]);
    assert_eq!(run.store.used_bytes(), 2 * plane + 2 * (4 + 3) * codes);
}
