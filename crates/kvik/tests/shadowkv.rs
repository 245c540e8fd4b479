//! ShadowKV on a real model: nothing changes within the budget, little beyond it, and memory falls.

use kvik_engine::{Engine, EngineOptions, Session};
use kvik_kv::Pipeline;
use kvik_model::tokenizer::EncodeOptions;
use std::path::Path;

const PROMPT_TOKENS: usize = 1500;
const DECODED: usize = 40;

fn engine() -> Engine {
    let path = kvik::pull::ensure("smollm2").unwrap();
    let options = EngineOptions {
        threads: Some(2),
        context_tokens: Some(2048),
        prefill_chunk_tokens: 256,
        ..EngineOptions::default()
    };
    Engine::load(&path, &options).unwrap()
}

fn tokens(engine: &Engine, count: usize) -> Vec<u32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/text/war-and-peace-head.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let ids = engine.tokenizer().unwrap().encode(&text[..count * 8], EncodeOptions::default()).unwrap();
    ids[..count].to_vec()
}

fn session(engine: &Engine, pipeline: &str) -> Session {
    engine.session_with(&Pipeline::parse(pipeline).unwrap()).unwrap()
}

/// Loss of each token of `rest` but the first, and the bits of the last logits.
fn follow(engine: &mut Engine, session: &mut Session, prompt: &[u32], rest: &[u32]) -> (f64, Vec<u32>) {
    engine.read(session, prompt, true).unwrap();
    let (mut loss, mut bits) = (0.0, Vec::new());
    engine
        .decode(session, &rest[..rest.len() - 1], &mut |index, logits| {
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let all: f64 = logits.iter().map(|&logit| f64::from(logit - most).exp()).sum();
            loss += all.ln() - f64::from(logits[rest[index + 1] as usize] - most);
            bits = logits.iter().map(|logit| logit.to_bits()).collect();
        })
        .unwrap();
    (loss / (rest.len() - 1) as f64, bits)
}

#[test]
fn a_real_text_loses_little_and_its_cache_shrinks() {
    let mut engine = engine();
    let ids = tokens(&engine, PROMPT_TOKENS + DECODED);
    let (prompt, rest) = ids.split_at(PROMPT_TOKENS);
    let mut play = |pipeline: &str| {
        let mut session = session(&engine, pipeline);
        let (loss, bits) = follow(&mut engine, &mut session, prompt, rest);
        let share = engine.kv_bytes(&session) as f64 / engine.kv_shape().bf16_bytes(PROMPT_TOKENS) as f64;
        (loss, bits, share)
    };
    let (full, full_bits, _) = play("full");
    let (_, bits, _) = play("shadowkv(budget=1536)");
    assert!(bits == full_bits, "a prompt within the budget stays as it is");

    let (loss, in_ram, _) = play("shadowkv(rank=58,budget=184)");
    assert!(in_ram != full_bits && (loss / full - 1.0).abs() < 0.03, "{loss} against {full}");
    let (few, _, _) = play("shadowkv(rank=2,budget=184)");
    assert!(few > loss + 0.02, "two directions are too few: {few} against {loss}");

    let (_, in_file, share) = play("shadowkv(rank=58,budget=184,values=file)");
    assert!(in_file == in_ram, "values in a file give the same bits");
    // Coefficients, landmarks, chosen chunks and outliers, recent tokens, angles; with the values it would be more than all.
    assert!(share < 0.6, "{share} of the full cache in RAM");
    let (_, behind_tier, _) = play("shadowkv(rank=58,budget=184)+tier(ram=8MiB)");
    assert!(behind_tier == in_ram);
    let (in_bits, _, _) = play("shadowkv(rank=58,budget=184)+kivi(bits=4)");
    assert!((in_bits / full - 1.0).abs() < 0.05, "{in_bits} against {full}");
}
