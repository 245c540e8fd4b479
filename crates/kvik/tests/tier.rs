//! A cache whose blocks lie in a file, on a real model: the same bits as in RAM, within the budget, and nothing left behind.

use kvik_engine::{Engine, EngineOptions, Session};
use kvik_kv::Pipeline;
use kvik_model::tokenizer::EncodeOptions;
use std::path::Path;

const PROMPT_TOKENS: usize = 1100;
const DECODED: usize = 20;

fn engine(sessions: usize) -> Engine {
    let path = kvik::pull::ensure("smollm2").unwrap();
    let options = EngineOptions {
        threads: Some(2),
        context_tokens: Some(2048),
        prefill_chunk_tokens: 256,
        sessions,
        ..EngineOptions::default()
    };
    Engine::load(&path, &options).unwrap()
}

/// Tokens of a real text.
fn tokens(engine: &Engine, count: usize) -> Vec<u32> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/text");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    let text: String = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let ids = engine.tokenizer().unwrap().encode(&text[..count * 12], EncodeOptions::default()).unwrap();
    ids[..count].to_vec()
}

fn session(engine: &Engine, pipeline: &str) -> Session {
    engine.session_with(&Pipeline::parse(pipeline).unwrap()).unwrap()
}

/// Bits of the logits of a prompt's last token and of the decoded ones.
fn follow(engine: &mut Engine, session: &mut Session, prompt: &[u32], decoded: &[u32]) -> Vec<Vec<u32>> {
    let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>();
    let mut all = vec![bits(&engine.read(session, prompt, true).unwrap())];
    engine.decode(session, decoded, &mut |_, logits| all.push(bits(logits))).unwrap();
    all
}

#[test]
fn a_pipeline_gives_the_same_bits_with_a_file_behind_it() {
    let mut engine = engine(1);
    let ids = tokens(&engine, PROMPT_TOKENS + DECODED);
    let (prompt, decoded) = ids.split_at(PROMPT_TOKENS);
    for methods in ["", "snapkv(budget=700)+", "kivi+", "snapkv(budget=700)+kivi+"] {
        let mut in_ram = session(&engine, methods.strip_suffix('+').unwrap_or("full"));
        let want = follow(&mut engine, &mut in_ram, prompt, decoded);
        let whole = engine.kv_bytes(&in_ram);
        drop(in_ram);
        for arguments in ["ram=12MiB", "ram=0", "ram=0,prefetch=no"] {
            let pipeline = format!("{methods}tier({arguments})");
            let mut tiered = session(&engine, &pipeline);
            let got = follow(&mut engine, &mut tiered, prompt, decoded);
            assert!(got == want, "{pipeline}");
            let (ram, file) = (engine.kv_bytes(&tiered), engine.kv_file_bytes(&tiered));
            if arguments == "ram=12MiB" {
                assert!(ram <= 12 << 20, "{pipeline}: {ram} bytes");
            } else {
                assert!(file > 0 && ram < whole, "{pipeline}: {ram} of {whole} bytes, {file} in the file");
            }
        }
        assert_eq!((engine.store_bytes(), engine.store_file_bytes()), (0, 0), "after {methods}tier");
    }
}

#[test]
fn forks_and_shorter_sequences_give_the_same_bits() {
    let mut engine = engine(2);
    let ids = tokens(&engine, PROMPT_TOKENS + 2 * DECODED);
    let (prompt, rest) = ids.split_at(PROMPT_TOKENS);
    let (one, other) = rest.split_at(DECODED);
    let mut play = |pipeline: &str| {
        let mut first = session(&engine, pipeline);
        let mut bits = follow(&mut engine, &mut first, &prompt[..900], one);
        let mut fork = engine.fork(&first);
        bits.extend(follow(&mut engine, &mut fork, &prompt[900..1000], other));
        bits.extend(follow(&mut engine, &mut first, &prompt[1000..], one));
        assert_eq!(engine.truncate(&mut fork, 1000), 1000);
        bits.extend(follow(&mut engine, &mut fork, &prompt[..50], one));
        assert_eq!(engine.truncate(&mut first, 0), 0);
        bits.extend(follow(&mut engine, &mut first, &prompt[..300], other));
        bits
    };
    let want = play("full");
    for pipeline in ["tier(ram=10MiB)", "tier(ram=0)"] {
        assert!(play(pipeline) == want, "{pipeline}");
    }
}
