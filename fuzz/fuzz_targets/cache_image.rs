//! An arbitrary image of a sequence's cache, for one of several pipelines: it becomes a sequence, or the store holds what it held.
#![no_main]

use kvik_kv::{KvShape, KvStore, LayerShape, Pipeline};
use libfuzzer_sys::fuzz_target;

const PIPELINES: [&str; 4] = [
    "full",
    "snapkv(budget=40,window=8)+kivi(bits=4,group=16,residual=16)",
    "h2o(budget=40)",
    "streaming(budget=30,positions=slot)+kivi(bits=8,group=16,residual=16)",
];

fuzz_target!(|input: &[u8]| {
    // The first byte says which pipeline.
    let Some((&which, image)) = input.split_first() else { return };
    let layer = LayerShape { kv_heads: 2, key_dim: 8, value_dim: 8, window: None };
    let mut store = KvStore::new(KvShape::unrotated(vec![layer]), 2, 1000, 64).expect("there is room for so little");
    let pipeline = Pipeline::parse(PIPELINES[usize::from(which) % PIPELINES.len()]).expect("it is one");
    // With a checksum that is right only for what was written, and without, as for images that carry another.
    for bare in [false, true] {
        let imported = if bare { store.import_bare(image, &pipeline) } else { store.import(image, &pipeline) };
        match imported {
            Ok(cache) => {
                assert!(cache.len() <= 1000);
                drop(cache);
                store.reclaim();
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert_eq!(store.used_bytes(), 0);
    }
});
