//! That a smaller cache is a smaller process: resident bytes, as the system counts them, on SmolLM2. A process of its own.

mod smollm2;

use kvik_engine::{Engine, Session};
use kvik_kv::Pipeline;
use kvik_memory::counters::resident_bytes;
use kvik_model::tokenizer::EncodeOptions;

const PROMPT: &str = include_str!("../../../data/text/war-and-peace-head.txt");
/// A pipeline that keeps little.
const SMALL: &str = "snapkv(budget=64)";

/// Reads `prompt` with `sessions` sessions.
fn read(engine: &mut Engine, kv: &str, prompt: &[u32], sessions: usize) -> Vec<Session> {
    let pipeline = Pipeline::parse(kv).unwrap();
    let read = |_| {
        let mut session = engine.session_with(&pipeline).unwrap();
        engine.read(&mut session, prompt, true).unwrap();
        session
    };
    (0..sessions).map(read).collect()
}

/// How much the process grows by `sessions` sessions that have read `prompt`, and the bytes of their blocks.
fn growth(engine: &mut Engine, kv: &str, prompt: &[u32], sessions: usize) -> (f64, f64) {
    // What sessions before have left goes back to the system when a prompt ends.
    drop(read(engine, SMALL, &prompt[..70], 1));
    let before = resident_bytes().unwrap() as f64;
    let held = read(engine, kv, prompt, sessions);
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
    // The buffers of a pass and the tables of eight sessions have their size after the first of them.
    drop(read(&mut engine, SMALL, &ids[..1500], 1));
    drop(read(&mut engine, SMALL, &ids[..70], 8));
    for (sessions, tokens) in [(1, 1500), (8, 400)] {
        let prompt = &ids[..tokens];
        let (small, small_bytes) = growth(&mut engine, SMALL, prompt, sessions);
        let (full, full_bytes) = growth(&mut engine, "full", prompt, sessions);
        let uncompressed = (engine.kv_shape().bf16_bytes(tokens) * sessions) as f64;
        assert!(full_bytes > 0.99 * uncompressed, "{full_bytes} of {uncompressed}");
        assert!(small_bytes < 0.3 * full_bytes, "{small_bytes} of {full_bytes}");
        let (saved, should) = (full - small, full_bytes - small_bytes);
        assert!(saved > 0.9 * should, "{sessions} × {tokens}: {saved} of {should} bytes saved");
    }
}
