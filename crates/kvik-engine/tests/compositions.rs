//! Methods of the registry in pairs, on small models of three architectures: whatever goes together runs, is cut back and copied.

use std::path::Path;

use kvik_engine::{Engine, EngineError, EngineOptions};
use kvik_kv::{CacheError, MethodInfo, Pipeline, methods::METHODS};

const PROMPT: usize = 200;
const DECODED: usize = 20;

/// The method, with a budget that a prompt of the test exceeds and from the first layer on, if it has such parameters; once more
/// for rows that stand by their slots.
fn small(method: &MethodInfo) -> Vec<String> {
    let settings = [("budget", "64"), ("start", "0"), ("skip", "0"), ("positions", "slot")];
    let has = |name: &str| method.parameters.iter().any(|parameter| parameter.name == name);
    let given = settings.iter().filter(|(name, _)| has(name)).map(|(name, value)| format!("{name}={value}"));
    let given: Vec<String> = given.collect();
    let written = |given: &[String]| format!("{}({})", method.name, given.join(",")).replace("()", "");
    match has("positions") {
        true => vec![written(&given[..given.len() - 1]), written(&given)],
        false => vec![written(&given)],
    }
}

/// All methods that need no calibration, alone and in pairs of different directions, and one long pipeline.
fn pipelines() -> Vec<String> {
    let free = METHODS.iter().filter(|method| method.calibration.is_none());
    let mut all: Vec<String> = free.clone().flat_map(|method| small(method)).collect();
    for first in free.clone() {
        let follows = |second: &&&MethodInfo| {
            first.direction < second.direction && first.composes_with().any(|other| other.name == second.name)
        };
        for second in free.clone().filter(follows) {
            let seconds = small(second);
            let pair = |first: String| seconds.iter().map(move |second| format!("{first}+{second}"));
            all.extend(small(first).into_iter().flat_map(pair).collect::<Vec<_>>());
        }
    }
    all.push("h2o(budget=64,positions=slot)+minicache(start=0,every=4)+kivi(residual=32)".to_owned());
    all
}

fn engine(model: &str, pipeline: Pipeline) -> Option<Engine> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf").join(model).join("model.gguf");
    let options = EngineOptions {
        threads: Some(2),
        context_tokens: Some(400),
        prefill_chunk_tokens: 70,
        sessions: 3,
        pipeline,
    };
    match Engine::load(&path, &options) {
        // A method may say that it does not fit a model.
        Err(EngineError::Prepare(_)) => None,
        engine => Some(engine.unwrap()),
    }
}

fn tokens(from: usize, len: usize) -> Vec<u32> {
    (from..from + len).map(|i| 3 + (i * 31 + i * i * 7) as u32 % 93).collect()
}

#[test]
fn pairs_read_decode_are_cut_back_and_copied() {
    let pipelines = pipelines();
    let mut ran = vec![false; pipelines.len()];
    for model in ["llama", "gemma3", "qwen3"] {
        let mut plain = engine(model, Pipeline::full()).unwrap();
        for (kv, ran) in pipelines.iter().zip(&mut ran) {
            let pipeline = Pipeline::parse(kv).unwrap_or_else(|error| panic!("{error}"));
            // Some methods change the model's weights, which then serve them alone.
            let methods = pipeline.build(plain.kv_shape());
            let mut prepared = match methods.is_ok_and(|methods| !pipeline.basis(&methods).is_empty()) {
                true => engine(model, pipeline.clone()),
                false => None,
            };
            let engine = prepared.as_mut().unwrap_or(&mut plain);
            let mut session = match engine.session_with(&pipeline) {
                // A method may say that it does not fit a model.
                Err(EngineError::Cache(CacheError::Method { .. })) => continue,
                session => session.unwrap(),
            };
            *ran = true;
            let finite = |logits: &[f32]| assert!(logits.iter().all(|l| l.is_finite()), "{model}, {kv}");
            finite(&engine.read(&mut session, &tokens(0, PROMPT), true).unwrap());
            engine.decode(&mut session, &tokens(PROMPT, DECODED), &mut |_, logits| finite(logits)).unwrap();

            let mut copy = engine.fork(&session);
            let kept = engine.truncate(&mut copy, PROMPT + DECODED / 2);
            assert!(kept == PROMPT + DECODED / 2 || kept == 0, "{model}, {kv}: {kept}");
            finite(&engine.read(&mut copy, &tokens(kept, 90), true).unwrap());
            engine.decode(&mut copy, &tokens(0, 5), &mut |_, logits| finite(logits)).unwrap();
            assert_eq!(copy.tokens().len(), kept + 95);

            // What the copy did leaves no trace in the first.
            let mut again = engine.fork(&session);
            let (mut first, mut second) = (Vec::new(), Vec::new());
            engine.decode(&mut session, &tokens(7, 5), &mut |_, l| first.extend_from_slice(l)).unwrap();
            engine.decode(&mut again, &tokens(7, 5), &mut |_, l| second.extend_from_slice(l)).unwrap();
            assert!(first == second, "{model}, {kv}");
            drop((session, copy, again));
            assert_eq!((engine.store_bytes(), engine.store_blocks()), (0, 0), "{model}, {kv}");
        }
    }
    let idle: Vec<&String> = pipelines.iter().zip(ran).filter(|(_, ran)| !ran).map(|(kv, _)| kv).collect();
    assert!(idle.is_empty(), "no model of the test is one for {idle:?}");
}
