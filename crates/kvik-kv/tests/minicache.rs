//! MiniCache against a numpy model of the paper, and what it does to memory.

use std::{collections::BTreeMap, fs, path::Path};

use kvik_kernels::{Phase, ThreadPool, attention::PlaneKind};
use kvik_kv::{CacheError, KvShape, KvStore, LayerShape, Method, OpenCache, Pipeline, SequenceCache};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tokens: usize,
    kv_heads: usize,
    dim: usize,
    /// `[layers, tokens, kv_heads, dim]`.
    keys: Vec<Vec<Vec<Vec<f32>>>>,
    values: Vec<Vec<Vec<Vec<f32>>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    t: f64,
    retain: f64,
    rule: String,
    heads: Vec<Head>,
}

#[derive(Deserialize)]
struct Head {
    /// Tokens that were not merged.
    retained: Vec<u32>,
    /// `[layers, tokens, dim]`.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

/// Hands a sequence's cache to a test when a prompt ends, behind another method.
struct Look<F>(F);

impl<F: Fn(&OpenCache<'_>) + Clone + Send + Sync + 'static> Method for Look<F> {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        (self.0)(cache);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(self.0.clone()))
    }
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods/minicache.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn shape(golden: &Golden) -> KvShape {
    let layer =
        LayerShape { kv_heads: golden.kv_heads, key_dim: golden.dim, value_dim: golden.dim, window: None };
    KvShape::unrotated(vec![layer; 2])
}

fn flat(tokens: &[Vec<Vec<f32>>]) -> Vec<f32> {
    tokens.iter().flatten().flatten().copied().collect()
}

fn read(golden: &Golden, store: &mut KvStore, sequence: &mut SequenceCache, phase: Phase) {
    let pool = ThreadPool::new(1);
    sequence.reserve(store, golden.tokens).unwrap();
    for layer in 0..2 {
        sequence.append(&pool, store, layer, &flat(&golden.keys[layer]), &flat(&golden.values[layer]));
    }
    sequence.commit(&pool, store, golden.tokens, phase).unwrap();
    if phase == Phase::Prefill {
        sequence.end_of_prompt(&pool, store).unwrap();
    }
}

#[test]
fn both_layers_read_what_the_papers_formulas_give() {
    let golden = golden();
    for case in &golden.cases {
        let mut store = KvStore::new(shape(&golden), 1, 256, 128).unwrap();
        let pipeline = format!("minicache(start=0,t={},retain={},rule={})", case.t, case.retain, case.rule);
        let mut methods = Pipeline::parse(&pipeline).unwrap().methods(store.shape()).unwrap();
        let heads: Vec<_> = case
            .heads
            .iter()
            .map(|head| (head.retained.clone(), [head.keys.clone(), head.values.clone()]))
            .collect();
        let tokens = golden.tokens;
        methods.push(Box::new(Look(move |cache: &OpenCache<'_>| {
            for (kv_head, (retained, planes)) in heads.iter().enumerate() {
                for layer in 0..2 {
                    let shared = cache.shared_rows(layer, kv_head);
                    let positions = cache.positions(layer, kv_head);
                    assert_eq!(positions[shared..], retained[..], "{pipeline}, head {kv_head}");
                    assert_eq!(positions.len(), tokens);
                    for (plane, want) in [PlaneKind::Keys, PlaneKind::Values].into_iter().zip(planes) {
                        let read = cache.plane(layer, kv_head, plane, 0..positions.len());
                        let dim = read.len() / positions.len();
                        for (row, (position, read)) in positions.iter().zip(read.chunks(dim)).enumerate() {
                            let want = &want[layer][*position as usize];
                            // The direction is rounded to bf16, its length is not; what was not merged is exact.
                            let most = if row < shared { 1.0 / 256.0 } else { 0.0 };
                            for (got, want) in read.iter().zip(want) {
                                let most = most * want.abs() + 2e-5;
                                assert!((got - want).abs() <= most, "{pipeline}: {got} for {want}");
                            }
                        }
                    }
                }
            }
        })));
        let mut sequence = store.sequence_of(methods);
        read(&golden, &mut store, &mut sequence, Phase::Prefill);
        assert_eq!(sequence.len(), tokens);
    }
}

#[test]
fn two_layers_take_the_blocks_of_one_and_give_them_back() {
    let golden = golden();
    let mut store = KvStore::new(shape(&golden), 4, 512, 128).unwrap();
    let bytes = |store: &mut KvStore, pipeline: &str| {
        let mut sequence = store.sequence_with(&Pipeline::parse(pipeline).unwrap()).unwrap();
        for _ in 0..4 {
            read(&golden, store, &mut sequence, Phase::Prefill);
        }
        read(&golden, store, &mut sequence, Phase::Decode);
        let blocks = store.used_bytes();
        let by_encoding = store.bytes_by_encoding();
        assert_eq!(by_encoding.iter().map(|part| part.ram_bytes).sum::<usize>(), blocks);
        let copy = sequence.fork(store);
        store.audit([&sequence, &copy]).unwrap();
        drop(sequence);
        drop(copy);
        assert_eq!(store.bytes_by_encoding(), [], "what was left behind counts for nothing");
        let by_encoding = by_encoding.into_iter().map(|part| (part.encoding.into_owned(), part.ram_bytes));
        (blocks, by_encoding.collect::<BTreeMap<_, _>>())
    };
    let (full, by_encoding) = bytes(&mut store, "full");
    assert_eq!(by_encoding, BTreeMap::from([("bf16".to_owned(), full)]));
    let (merged, by_encoding) = bytes(&mut store, "minicache(start=0,retain=0,every=1)");
    assert_eq!(merged * 2, full);
    assert_eq!(by_encoding, BTreeMap::from([("merged-layers".to_owned(), merged)]));
    let (both, by_encoding) =
        bytes(&mut store, "minicache(start=0,retain=0,every=1)+kivi(bits=4,group=16,residual=16)");
    assert_eq!(by_encoding.keys().collect::<Vec<_>>(), ["affine-4-bits", "merged-layers"]);
    // Heads are so small here that codes take half a tile, minima and maxima a quarter.
    assert!(both * 4 < merged * 3, "{both} of {merged} bytes");
    assert_eq!(store.used_bytes(), 0);
}

#[test]
fn a_model_without_neighbours_that_see_everything_is_refused() {
    let layer = |window| LayerShape { kv_heads: 1, key_dim: 8, value_dim: 8, window };
    let shape = KvShape::unrotated(vec![layer(Some(4)), layer(None), layer(Some(4)), layer(None)]);
    let store = KvStore::new(shape, 1, 64, 64).unwrap();
    let error = store.sequence_with(&Pipeline::parse("minicache(start=0)").unwrap()).err().unwrap();
    assert!(error.to_string().contains("no two in a row"), "{error}");
}
