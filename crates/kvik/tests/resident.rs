//! That a smaller cache is a smaller process: resident bytes, as the system counts them, on SmolLM2. A process of its own.

mod smollm2;

use kvik_engine::Engine;
use kvik_kv::Pipeline;
use kvik_memory::resident_bytes;
use kvik_model::tokenizer::EncodeOptions;

const PROMPT: &str = include_str!("../../../data/text/war-and-peace-head.txt");

/// How much the process grows by `sessions` sessions that have read `prompt`, and the bytes of their blocks.
fn growth(engine: &mut Engine, kv: &str, prompt: &[u32], sessions: usize) -> (f64, f64) {
    let pipeline = Pipeline::parse(kv).unwrap();
    let before = resident_bytes().unwrap() as f64;
    let held: Vec<_> = (0..sessions)
        .map(|_| {
            let mut session = engine.session_with(&pipeline).unwrap();
            engine.read(&mut session, prompt, true).unwrap();
            session
        })
        .collect();
    let after = resident_bytes().unwrap() as f64;
    let bytes: usize = held.iter().map(|session| engine.kv_bytes(session)).sum();
    assert!(engine.store_bytes() <= bytes);
    (after - before, bytes as f64)
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_shrinks_with_the_cache_of_one_and_of_eight() {
    let mut engine = smollm2::engine(8);
    let ids = engine.tokenizer().unwrap().encode(PROMPT, EncodeOptions::default()).unwrap();
    // Buffers that every pass needs have their size after one.
    growth(&mut engine, "snapkv(budget=128)", &ids[..600], 1);
    for (sessions, tokens) in [(1, 4000), (8, 600)] {
        let prompt = &ids[..tokens];
        // Small first: what it leaves is not there yet.
        let (small, small_bytes) = growth(&mut engine, "snapkv(budget=128)", prompt, sessions);
        let (full, full_bytes) = growth(&mut engine, "full", prompt, sessions);
        let uncompressed = (engine.kv_shape().bf16_bytes(tokens) * sessions) as f64;
        assert!(
            full_bytes > 0.99 * uncompressed && small_bytes < 0.3 * full_bytes,
            "{small_bytes} {full_bytes}"
        );
        assert!(full > 0.9 * full_bytes, "{full} of {full_bytes} are resident");
        let (saved, should) = (full - small, full_bytes - small_bytes);
        assert!(saved > 0.9 * should, "{sessions} × {tokens}: {saved} of {should} bytes saved");
        // What the long one took goes back to the system when the next prompt ends.
        growth(&mut engine, "snapkv(budget=128)", &ids[..200], 1);
    }
}
