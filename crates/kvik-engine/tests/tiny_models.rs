//! The engine on tiny random models of every architecture: what it gives must not depend on how it was computed.
//!
//! Greedy texts of a random model wander over the whole vocabulary and hang on small differences of logits, so they
//! give away any number that changes with the chunk size, the threads or the history of a session.

mod tiny;

use kvik_engine::{
    Engine, EngineError, EngineOptions, Event, GenerateRequest, Generation, Phase, SamplingOptions, Session,
    StopReason, TokenLogprob,
};
use kvik_kv::Pipeline;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tiny::folders;

fn load(folder: &Path, threads: usize, prefill_chunk_tokens: usize) -> Engine {
    let options = EngineOptions {
        threads: Some(threads),
        prefill_chunk_tokens,
        sessions: 2,
        ..EngineOptions::default()
    };
    Engine::load(&folder.join("model.gguf"), &options)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn named(name: &str) -> PathBuf {
    folders().into_iter().find(|folder| folder.ends_with(name)).unwrap()
}

/// 33 tokens, past every window and original context of the tiny models.
fn prompt() -> Vec<u32> {
    (0..33).map(|i| 3 + i * 31 % 93).collect()
}

fn greedy(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        max_tokens: Some(24),
        sampling: SamplingOptions::greedy(),
        logprobs: Some(3),
        ignore_end_of_text: true,
        ..GenerateRequest::default()
    }
}

fn generate(engine: &mut Engine, session: &mut Session, request: &GenerateRequest) -> Generation {
    engine.generate(session, request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn generate_anew(engine: &mut Engine, request: &GenerateRequest) -> Generation {
    let mut session = engine.session();
    generate(engine, &mut session, request)
}

#[test]
fn texts_do_not_depend_on_chunks_or_threads() {
    for folder in folders() {
        let expected = generate_anew(&mut load(&folder, 1, 512), &greedy(prompt()));
        assert_eq!(expected.completion_ids.len(), 24, "{}", folder.display());
        for (threads, chunk_tokens) in [(1, 1), (1, 7), (2, 3), (2, 512)] {
            let got = generate_anew(&mut load(&folder, threads, chunk_tokens), &greedy(prompt()));
            // Not only the tokens: every log-probability to the last bit.
            assert_eq!(
                (got.completion_ids, got.logprobs, got.text),
                (expected.completion_ids.clone(), expected.logprobs.clone(), expected.text.clone()),
                "{} on {threads} threads in chunks of {chunk_tokens}",
                folder.display()
            );
        }
    }
}

/// Equal but for the rounding of prompts, which the arithmetic of generated tokens does not have.
fn assert_close(a: &TokenLogprob, b: &TokenLogprob, folder: &Path) {
    let near = |a: f32, b: f32| (a.exp() - b.exp()).abs() < 0.03;
    let same = a.id == b.id && near(a.logprob, b.logprob) && a.top.len() == b.top.len();
    let tops_near = a.top.iter().zip(&b.top).all(|(a, b)| near(a.1, b.1));
    assert!(same && tops_near, "{}: {a:?}, {b:?}", folder.display());
}

#[test]
fn a_used_session_gives_what_a_fresh_one_gives() {
    for folder in folders() {
        let mut engine = load(&folder, 2, 16);
        let mut session = engine.session();
        let whole = prompt();
        let answer = generate(&mut engine, &mut session, &greedy(whole[..20].to_vec())).completion_ids;
        let prompts = [
            // A turn of a chat: all of before, and more.
            [&whole[..20], &answer, &[50, 51]].concat(),
            // The answer regenerated, and a prompt that parts early.
            whole[..20].to_vec(),
            [&whole[..3], &whole[9..14]].concat(),
            whole,
        ];
        for (index, prompt) in prompts.into_iter().enumerate() {
            let request = GenerateRequest { max_tokens: Some(12), ..greedy(prompt) };
            let fresh = generate_anew(&mut engine, &request);
            let used = generate(&mut engine, &mut session, &request);
            if index == 0 {
                // The used session generated the answer, the fresh one reads it as a prompt.
                assert_close(&used.logprobs[0], &fresh.logprobs[0], &folder);
            } else {
                assert_eq!(used.completion_ids, fresh.completion_ids, "{}", folder.display());
                assert_eq!(used.logprobs, fresh.logprobs, "{}", folder.display());
            }
            assert_eq!(fresh.prefill_tokens, fresh.prompt_ids.len());
        }
    }
}

#[test]
fn a_chat_turn_computes_its_new_tokens_only() {
    for name in ["llama", "gemma3"] {
        let mut engine = load(&named(name), 1, 16);
        let mut session = engine.session();
        let first = generate(&mut engine, &mut session, &greedy(prompt()));
        let turn = [first.prompt_ids, first.completion_ids, vec![50, 51]].concat();
        let second =
            generate(&mut engine, &mut session, &GenerateRequest { max_tokens: Some(2), ..greedy(turn) });
        // The last token of the answer was chosen and never computed.
        assert_eq!(second.prefill_tokens, 3, "{name}");
    }
}

#[test]
fn scores_are_the_log_probabilities_of_generation() {
    for folder in folders() {
        let mut engine = load(&folder, 2, 512);
        let generation = generate_anew(&mut engine, &greedy(prompt()));
        let ids = [generation.prompt_ids, generation.completion_ids].concat();
        let score = engine.score(&Pipeline::full(), &ids, 3, Phase::Prefill, &mut |_, _| {}).unwrap();
        for (position, token) in (33..).zip(&generation.logprobs) {
            let scored = TokenLogprob {
                id: token.id,
                logprob: score.logprobs[position].unwrap(),
                top: score.top[position].clone(),
            };
            assert_close(&scored, token, &folder);
        }
    }
}

/// The reference's logits of the longer golden prompt, turned into log-probabilities here in f64.
#[test]
fn scores_are_the_references() {
    let folder = named("llama");
    let golden: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let logits: Vec<f64> = fs::read(folder.join("golden.f32"))
        .unwrap()
        .chunks_exact(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
        .collect();
    let vocab_size = golden["shape"][1].as_u64().unwrap() as usize;
    let ids: Vec<u32> = golden["prompts"][1]["ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect();
    let first_row = golden["prompts"][1]["first_row"].as_u64().unwrap() as usize;

    let score =
        load(&folder, 1, 512).score(&Pipeline::full(), &ids, 0, Phase::Prefill, &mut |_, _| {}).unwrap();
    let mut sum = 0.0;
    for position in 1..ids.len() {
        let row = &logits[(first_row + position - 1) * vocab_size..][..vocab_size];
        let expected = row[ids[position] as usize] - row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let got = f64::from(score.logprobs[position].unwrap());
        // Keys and values are cached in bf16, activations may be rounded to 8 bits.
        assert!((got - expected).abs() < 0.1, "position {position}: {got} {expected}");
        sum += expected;
    }
    let perplexity = (-sum / (ids.len() - 1) as f64).exp();
    assert!((score.perplexity / perplexity - 1.0).abs() < 0.01, "{} {perplexity}", score.perplexity);
}

#[test]
fn streamed_text_is_the_tokenizers() {
    let mut engine = load(&named("llama"), 1, 512);
    let mut session = engine.session();
    let mut streamed = String::new();
    let generation = engine
        .generate(&mut session, &greedy(prompt()), &mut |event| {
            if let Event::Token { text, .. } = event {
                streamed.push_str(text);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(!streamed.is_empty());
    assert_eq!(streamed, generation.text);
    assert_eq!(streamed, engine.tokenizer().unwrap().decode(&generation.completion_ids, false));
}

#[test]
fn the_context_is_the_models_unless_another_is_asked_for() {
    let path = named("llama").join("model.gguf");
    let load =
        |context_tokens| Engine::load(&path, &EngineOptions { context_tokens, ..EngineOptions::default() });
    assert_eq!(load(None).unwrap().context_tokens(), 64);
    assert_eq!(load(Some(1000)).unwrap().context_tokens(), 1000);
    assert!(matches!(load(Some(0)), Err(EngineError::Context { asked: 0, .. })));
    let sentence = load(Some(usize::MAX)).err().unwrap().to_string();
    let expected =
        "a context of 18446744073709551615 tokens was asked for: use 1 to 16777216 with this model";
    assert_eq!(sentence, expected);

    let mut engine = load(Some(40)).unwrap();
    let full = generate_anew(&mut engine, &greedy(prompt()));
    assert_eq!((full.completion_ids.len(), full.stop), (7, StopReason::ContextFull));
    let error = engine.score(&Pipeline::full(), &[5; 41], 0, Phase::Prefill, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, EngineError::TextTooLong { text_tokens: 41, context_tokens: 40 }));
}

/// The tiny OPT in a folder as from Hugging Face, with a tokenizer.
fn opt_folder() -> tempfile::TempDir {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models/opt");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(tiny.join(file), folder.path().join(file)).unwrap();
    }
    let vocab: serde_json::Map<_, _> = (0..96).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

#[test]
fn a_table_of_positions_bounds_the_context() {
    let folder = opt_folder();
    let load = |context_tokens| {
        Engine::load(folder.path(), &EngineOptions { context_tokens, ..EngineOptions::default() })
    };
    let mut engine = load(None).unwrap();
    assert_eq!(engine.context_tokens(), 40);
    let full = generate_anew(&mut engine, &GenerateRequest { max_tokens: None, ..greedy(prompt()) });
    assert_eq!((full.completion_ids.len(), full.stop), (40 - 33, StopReason::ContextFull));
    assert!(matches!(load(Some(41)), Err(EngineError::Context { asked: 41, limit: 40 })));
}

#[test]
fn a_broken_chat_template_leaves_completion() {
    let folder = opt_folder();
    let load = || Engine::load(folder.path(), &EngineOptions::default()).unwrap();
    assert!(load().chat_template().unwrap().is_none());
    let file = folder.path().join("chat_template.jinja");
    fs::write(&file, "{% for message in messages %}{{ message.content }}{% endfor %}").unwrap();
    assert!(load().chat_template().unwrap().is_some());
    fs::write(&file, "{% for message in %}").unwrap();
    let mut engine = load();
    assert!(engine.chat_template().unwrap_err().to_string().contains("chat template is broken"));
    let request = GenerateRequest { max_tokens: Some(3), ..greedy(vec![5, 6]) };
    assert_eq!(generate_anew(&mut engine, &request).completion_ids.len(), 3);
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let path = named("llama").join("model.gguf");
    let load = |options: EngineOptions| Engine::load(&path, &options).err().unwrap();
    let no_threads = load(EngineOptions { threads: Some(0), ..EngineOptions::default() });
    assert_eq!(no_threads.to_string(), "0 threads were asked for: use 1 to 1024");
    let no_chunk = load(EngineOptions { prefill_chunk_tokens: 0, ..EngineOptions::default() });
    assert!(matches!(no_chunk, EngineError::PrefillChunk));
    let missing = Engine::load(Path::new("no/such/model.gguf"), &EngineOptions::default()).err().unwrap();
    assert!(missing.to_string().contains("no/such/model.gguf"), "{missing}");
}
