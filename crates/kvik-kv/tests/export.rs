//! Exported caches: what comes back goes on with the same bits, and what was damaged is refused.

mod layer;

use kvik_kernels::Phase;
use kvik_kv::{CacheError, KvShape, KvStore, Pipeline};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use layer::{CAPACITY, Run, Setting};

fn setting() -> Setting {
    Setting { heads: 4, kv_heads: 2, dim: 8, scale: 0.5, frequencies: vec![1.0, 0.25, 0.0625, 0.015_625] }
}

const PIPELINES: [&str; 7] = [
    "full",
    "snapkv(budget=40,window=8)+kivi(bits=4,group=16,residual=16)",
    "h2o(budget=40)",
    "h2o(ratio=0.3,positions=slot)",
    "h2o(budget=50)+kivi(group=16,residual=16)",
    "streaming(budget=30,positions=slot)+kivi(bits=8,group=16,residual=16)",
    "l2norm(budget=40,skip=0)",
];

/// A sequence that has read `prompt` tokens and decoded some.
fn run(pipeline: &str, prompt: usize, decoded: usize) -> Run {
    let mut run = Run::unwatched(&setting(), true, 0, pipeline);
    run.step(prompt, Phase::Prefill);
    run.end_of_prompt();
    (0..decoded).for_each(|_| drop(run.step(1, Phase::Decode)));
    run
}

fn export(run: &Run) -> Vec<u8> {
    let mut bytes = Vec::new();
    run.cache.export(&run.store, &mut bytes).unwrap();
    bytes
}

/// A sequence of its own store, read from `bytes`.
fn import(bytes: &[u8], pipeline: &str) -> Result<Run, (CacheError, usize)> {
    let mut run = Run::unwatched(&setting(), true, 0, pipeline);
    match run.store.import(bytes, &Pipeline::parse(pipeline).unwrap()) {
        Ok(cache) => {
            run.cache = cache;
            Ok(run)
        }
        Err(error) => Err((error, run.store.used_bytes())),
    }
}

fn message(result: Result<Run, (CacheError, usize)>) -> String {
    let (error, used) = result.err().expect("it is refused");
    assert_eq!(used, 0, "blocks stay behind after: {error}");
    assert!(matches!(error, CacheError::Import(_)), "{error}");
    error.to_string()
}

#[test]
fn what_comes_back_goes_on_with_the_same_bits() {
    for pipeline in PIPELINES {
        let mut here = run(pipeline, 150, 30);
        let bytes = export(&here);
        let mut there = import(&bytes, pipeline).unwrap_or_else(|(error, _)| panic!("{pipeline}: {error}"));
        assert_eq!(there.cache.used_bytes(&there.store), here.cache.used_bytes(&here.store), "{pipeline}");
        assert!(export(&there) == bytes, "{pipeline}");
        let mut bare = Vec::new();
        here.cache.export_bare(&here.store, &mut bare).unwrap();
        assert!(bare[..] == bytes[..bytes.len() - 32], "{pipeline}: all but the checksum");
        let mut third = Run::unwatched(&setting(), true, 0, pipeline);
        third.cache = third.store.import_bare(&bare[..], &Pipeline::parse(pipeline).unwrap()).unwrap();
        assert!(export(&third) == bytes, "{pipeline}");
        for step in 0..30 {
            assert_eq!(here.step(1, Phase::Decode), there.step(1, Phase::Decode), "{pipeline}, step {step}");
        }
        for run in [&mut here, &mut there] {
            run.step(20, Phase::Prefill);
            run.end_of_prompt();
        }
        assert!(export(&here) == export(&there), "{pipeline}: a second prompt");
        assert_eq!(here.cache.truncate(&mut here.store, 225), there.cache.truncate(&mut there.store, 225));
        drop(there.cache);
        assert_eq!(there.store.used_bytes(), 0);
    }
}

#[test]
fn a_prompt_in_the_middle_goes_on_as_well() {
    for pipeline in PIPELINES {
        let mut here = Run::unwatched(&setting(), true, 0, pipeline);
        here.step(90, Phase::Prefill);
        let mut there = import(&export(&here), pipeline).unwrap_or_else(|(error, _)| panic!("{error}"));
        for run in [&mut here, &mut there] {
            run.step(3, Phase::Prefill);
            run.end_of_prompt();
        }
        assert!(export(&here) == export(&there), "{pipeline}");
    }
}

#[test]
fn encoded_planes_stay_encoded_in_the_file() {
    let [full, coded] =
        ["full", "kivi(bits=2,group=32,residual=32)"].map(|kv| export(&run(kv, 600, 0)).len() as f64);
    assert!(coded < 0.6 * full, "{coded} of {full} bytes");
}

#[test]
fn a_file_of_something_else_is_refused_with_a_sentence() {
    let bytes = export(&run("h2o(budget=40)", 60, 3));
    let refused = |bytes: &[u8], setting: &Setting, rotated: bool, fingerprint: &str, pipeline: &str| {
        let mut shape = Run::unwatched(setting, rotated, 0, "full").store.shape().clone();
        (shape.fingerprint, shape.basis) = (fingerprint.to_owned(), fingerprint.replace("another", ""));
        let mut store = KvStore::new(shape, 1, CAPACITY, CAPACITY).unwrap();
        let error = store.import(bytes, &Pipeline::parse(pipeline).unwrap()).err().expect("it is refused");
        assert_eq!(store.used_bytes(), 0);
        error.to_string()
    };
    let (same, kv) = (setting(), "h2o(budget=40)");
    let sentence = refused(&bytes, &same, true, "", "h2o(budget=41)");
    assert!(
        sentence.contains("made under 'h2o(budget=40)' and is wanted under 'h2o(budget=41)'"),
        "{sentence}"
    );
    let sentence = refused(&bytes, &same, true, "another", kv);
    assert!(sentence.contains("another model with the same shape"), "{sentence}");
    let sentence = refused(&bytes, &same, true, "hadamard", kv);
    assert!(sentence.contains("other weights: '' there, 'hadamard' here"), "{sentence}");
    let sentence = refused(&bytes, &Setting { dim: 16, ..setting() }, true, "", kv);
    assert!(
        sentence.contains("layer 0 has 2 KV heads of 8 dimensions there, and 2 of 16 here"),
        "{sentence}"
    );
    let other = Setting { frequencies: vec![1.0, 0.5, 0.25, 0.125], ..setting() };
    for sentence in [refused(&bytes, &other, true, "", kv), refused(&bytes, &same, false, "", kv)] {
        assert!(sentence.contains("rotated in another way"), "{sentence}");
    }
    assert!(refused(b"GGUF and so on", &same, true, "", kv).contains("no exported cache"));
    let mut later = bytes.clone();
    later[8] = 2;
    assert!(refused(&later, &same, true, "", kv).contains("version 2"));

    let mut small = KvStore::new(run(kv, 1, 0).store.shape().clone(), 1, 50, 50).unwrap();
    let error = small.import(&bytes[..], &Pipeline::parse(kv).unwrap()).err().unwrap().to_string();
    assert!(error.contains("63 tokens, and at most 50 fit"), "{error}");
    let shape = KvShape::unrotated(vec![run(kv, 1, 0).store.shape().layers[0]; 2]);
    let mut deep = KvStore::new(shape, 1, 50, 50).unwrap();
    let error = deep.import(&bytes[..], &Pipeline::parse(kv).unwrap()).err().unwrap().to_string();
    assert!(error.contains("a model with 1 layers, and this one has 2"), "{error}");
}

#[test]
fn methods_of_no_pipeline_cannot_be_exported() {
    let run = Run::new(&setting(), true, 0, "full");
    let error = run.cache.export(&run.store, Vec::new()).unwrap_err().to_string();
    assert!(error.contains("methods that are of no pipeline"), "{error}");
}

#[test]
fn a_file_that_ends_anywhere_is_refused() {
    let kv = "h2o(ratio=0.3,positions=slot)+kivi(group=16,residual=16)";
    let bytes = export(&run(kv, 70, 2));
    for end in 0..bytes.len() {
        let sentence = message(import(&bytes[..end], kv));
        assert!(sentence.contains("ends too early"), "{end} of {}: {sentence}", bytes.len());
    }
}

/// The checksum of somebody who knows how it is made.
fn sign(bytes: &mut [u8]) {
    let body = bytes.len() - 32;
    let checksum = Sha256::digest(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_file_is_refused_and_a_forged_one_does_no_harm(
        which in 0..PIPELINES.len(),
        place in 0.0..1.0f64,
        len in 1usize..9,
        with in prop::sample::select(vec![0u8, 1, 2, 3, 0x7f, 0x80, 0xff]),
        near_the_start in any::<bool>(),
    ) {
        let kv = PIPELINES[which];
        let mut bytes = export(&run(kv, 70, 2));
        let reach = if near_the_start { 700 } else { bytes.len() - 32 };
        let at = (place * (reach - len) as f64) as usize;
        let before = bytes.clone();
        bytes[at..at + len].fill(with);
        prop_assume!(bytes != before);
        message(import(&bytes, kv));
        sign(&mut bytes);
        match import(&bytes, kv) {
            // Some numbers may be anything; a pass over what came back must come to its end.
            Ok(mut run) => {
                let len = run.cache.len();
                run.step(3, Phase::Prefill);
                run.end_of_prompt();
                run.step(1, Phase::Decode);
                prop_assert_eq!(run.cache.len(), len + 4);
                drop(run.cache);
                prop_assert_eq!(run.store.used_bytes(), 0);
            }
            Err((error, used)) => {
                prop_assert!(!error.to_string().is_empty());
                prop_assert_eq!(used, 0);
            }
        }
    }
}
