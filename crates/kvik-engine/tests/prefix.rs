//! Prefixes on tiny models: a request that begins with one gets the bits that it gets without, from memory and from a disk.

mod tiny;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kvik_engine::{
    Engine, EngineOptions, Session,
    prefix::{KvDir, PrefixCache, PrefixOptions, PrefixSharing},
};
use kvik_kv::{Pipeline, methods::METHODS};

const WAIT: Duration = Duration::from_secs(20);

fn models() -> Vec<String> {
    let names = tiny::folders();
    names.iter().map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn engine(model: &str) -> Engine {
    let options = EngineOptions {
        threads: Some(1),
        context_tokens: Some(400),
        prefill_chunk_tokens: 70,
        sessions: 16,
        ..EngineOptions::default()
    };
    let folder = tiny::folders().into_iter().find(|folder| folder.ends_with(model)).unwrap();
    Engine::load(&folder.join("model.gguf"), &options).unwrap()
}

fn options(kv_dir: Option<&Path>) -> PrefixOptions {
    let kv_dir = kv_dir.map(|path| KvDir { path: path.to_owned(), max_bytes: 1 << 30 });
    PrefixOptions { sharing: PrefixSharing::All, block_tokens: 64, max_bytes: 1 << 30, kv_dir }
}

fn prefixes(engine: &mut Engine, options: &PrefixOptions) -> (PrefixCache, Arc<Mutex<Vec<String>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&heard);
    let report = Arc::new(move |text: &str| report.lock().unwrap().push(text.to_owned()));
    let cache = PrefixCache::new(options, engine.store(), None, report, Box::new(|| {})).unwrap();
    (cache, heard)
}

fn tokens(kind: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| 3 + (i * 31 + i * i * (7 + kind) + kind) as u32 % 93).collect()
}

/// The logits after the prompt, and after each of some more tokens.
fn logits(engine: &mut Engine, session: &mut Session, prompt: &[u32]) -> Vec<f32> {
    let known = session.tokens().len();
    let mut all = engine.read(session, &prompt[known..], true).unwrap();
    engine.decode(session, &tokens(9, 6), &mut |_, logits| all.extend_from_slice(logits)).unwrap();
    all
}

fn fresh(engine: &mut Engine, pipeline: &Pipeline, prompt: &[u32]) -> Vec<f32> {
    let mut session = engine.session_with(pipeline).unwrap();
    logits(engine, &mut session, prompt)
}

/// A request as serving runs it: waits for the disk, begins, reads with pauses, keeps. Its logits, and the tokens of the prefix.
fn serve(
    engine: &mut Engine,
    prefixes: &mut PrefixCache,
    owner: Option<&Arc<str>>,
    pipeline: &Pipeline,
    prompt: &[u32],
) -> (Vec<f32>, usize) {
    if let Some(loading) = prefixes.prepare(engine.store(), owner, pipeline, prompt) {
        let started = Instant::now();
        while prefixes.is_loading(&loading) {
            assert!(started.elapsed() < WAIT);
            prefixes.poll(engine.store());
        }
    }
    let begun = prefixes.begin(engine.store(), owner, pipeline, prompt).unwrap();
    prefixes.admitted(owner, prompt, &begun, false);
    let mut session = Session::resume(begun.cache, &prompt[..begun.tokens]);
    let mut _lock = begun.lock;
    // The last token is read by itself, so that a prompt can be kept before its end.
    for pause in begun.pauses.into_iter().filter(|&pause| pause < prompt.len()).chain([prompt.len() - 1]) {
        let known = session.tokens().len();
        if pause > known {
            engine.read(&mut session, &prompt[known..pause], false).unwrap();
            _lock = prefixes.keep(engine.store(), owner, &prompt[..pause], session.cache());
        }
    }
    let logits = logits(engine, &mut session, prompt);
    (logits, begun.tokens)
}

#[test]
fn a_prefix_changes_no_bit() {
    let shared = tokens(0, 200);
    let prompts = [
        [&shared[..], &tokens(1, 60)].concat(),
        [&shared[..], &tokens(2, 90)].concat(),
        [&shared[..190], &tokens(3, 30)].concat(),
        [&shared[..], &tokens(1, 61)].concat(),
        shared[..150].to_vec(),
        [&tokens(4, 3), &shared[..]].concat(),
    ];
    for model in models() {
        let mut engine = engine(&model);
        let mut plain = self::engine(&model);
        let (mut prefixes, _) = prefixes(&mut engine, &options(None));
        let windowed = engine.kv_shape().layers.iter().any(|layer| layer.window.is_some());
        let mut found = Vec::new();
        for prompt in &prompts {
            let expected = fresh(&mut plain, &Pipeline::full(), prompt);
            let (got, tokens) = serve(&mut engine, &mut prefixes, None, &Pipeline::full(), prompt);
            assert!(got == expected, "{model}, {} tokens of which {tokens} were known", prompt.len());
            found.push(tokens);
            let held = prefixes.check(engine.store()).unwrap_or_else(|defect| panic!("{model}: {defect}"));
            assert_eq!(held.held_by_others, 0, "{model}");
        }
        if windowed {
            // The window of a prompt that was kept reaches back to the tile before its end. The third prompt ends before what the
            // first two still have; where it parts from them, and at its own end, there is more for the fifth.
            assert_eq!(found, [0, 200, 0, 256, 149, 0], "{model}");
        } else {
            // The first prompt was kept up to its last whole block: 256 tokens of 260.
            assert_eq!(found, [0, 200, 190, 256, 149, 0], "{model}");
        }
        assert!(prefixes.evict(engine.store(), usize::MAX) > 0);
        assert_eq!((prefixes.statistics().bytes, engine.store_bytes(), engine.store_blocks()), (0, 0, 0));
    }
}

#[test]
fn pipelines_that_wait_for_the_prompts_end_share_and_no_other_does() {
    let mut engine = engine("llama");
    let (mut prefixes, _) = prefixes(&mut engine, &options(None));
    let shared = tokens(0, 230);
    let waits = [
        "kivi(residual=32)",
        "snapkv(budget=64,window=16)",
        "snapkv(budget=64,window=16)+kivi(residual=32)",
        "streaming(budget=64)",
        "streaming(budget=64,positions=slot)",
        "l2norm(budget=64,skip=0)",
        "random(budget=64)",
        "minicache(start=0)",
        "shadowkv(budget=64)",
        "full",
    ];
    let others = ["h2o(budget=64)", "tier(ram=1MiB)", "kivi+tier(ram=1MiB)"];
    // Of all methods that need no calibration and no other weights, one at least, so that a new one is held to what it says.
    for method in METHODS.iter().filter(|method| method.calibration.is_none() && method.name != "hadamard") {
        assert!(waits.iter().chain(&others).any(|kv| kv.starts_with(method.name)), "{}", method.name);
    }
    for (index, kv) in waits.iter().chain(&others).enumerate() {
        let pipeline = Pipeline::parse(kv).unwrap();
        let prompt = [&shared[..], &tokens(index, 40)].concat();
        let expected = fresh(&mut engine, &pipeline, &prompt);
        let (got, found) = serve(&mut engine, &mut prefixes, None, &pipeline, &prompt);
        assert!(got == expected, "{kv}: {found} tokens were known");
        // The first of them all has left its prefix for the next.
        assert_eq!(found > 0, index > 0 && index < waits.len(), "{kv}");
        if found > 0 {
            assert!(found >= shared.len(), "{kv}: {found}");
        }
        prefixes.check(engine.store()).unwrap_or_else(|defect| panic!("{kv}: {defect}"));
    }
    // With as many tokens left as the method looks at, the prefix is shorter.
    let pipeline = Pipeline::parse("snapkv(budget=64,window=50)").unwrap();
    let expected = fresh(&mut engine, &pipeline, &shared);
    let (got, found) = serve(&mut engine, &mut prefixes, None, &pipeline, &shared);
    assert!(got == expected && found == 180, "{found}");
}

#[test]
fn owners_share_only_if_they_may() {
    let owners: [Option<Arc<str>>; 3] = [None, Some("a".into()), Some("b".into())];
    let prompt = tokens(0, 140);
    for (sharing, expected) in [
        (PrefixSharing::Off, [0, 0, 0, 0, 0, 0]),
        (PrefixSharing::PerKey, [0, 0, 0, 128, 128, 128]),
        (PrefixSharing::All, [0, 128, 128, 128, 128, 128]),
    ] {
        let disk = tempfile::tempdir().unwrap();
        let mut engine = engine("llama");
        let options = PrefixOptions { sharing, ..options(Some(disk.path())) };
        let found = |engine: &mut Engine, prefixes: &mut PrefixCache, owner: &Option<Arc<str>>| {
            serve(engine, prefixes, owner.as_ref(), &Pipeline::full(), &prompt).1
        };
        {
            let (mut prefixes, _) = prefixes(&mut engine, &options);
            let got: Vec<usize> =
                owners.iter().chain(&owners).map(|owner| found(&mut engine, &mut prefixes, owner)).collect();
            assert_eq!(got, expected, "{sharing:?}");
            let request = prefixes.statistics();
            assert_eq!(request.hits, expected.iter().filter(|&&tokens| tokens > 0).count() as u64);
            assert_eq!(request.hit_tokens as usize, expected.iter().sum::<usize>());
            prefixes.finish(engine.store(), WAIT);
        }
        // A disk makes no difference.
        let (mut prefixes, _) = prefixes(&mut engine, &options);
        let stranger = Some(Arc::from("c"));
        assert_eq!(found(&mut engine, &mut prefixes, &stranger) > 0, sharing == PrefixSharing::All);
        for owner in &owners {
            assert_eq!(found(&mut engine, &mut prefixes, owner) > 0, sharing != PrefixSharing::Off);
        }
    }
}

#[test]
fn prefixes_come_back_from_the_disk_with_every_bit() {
    for model in models() {
        let disk = tempfile::tempdir().unwrap();
        let prompts = [
            [tokens(0, 200), tokens(1, 60)].concat(),
            [tokens(0, 200), tokens(2, 90)].concat(),
            tokens(5, 150),
        ];
        let mut expected = Vec::new();
        {
            let mut engine = engine(&model);
            let (mut prefixes, heard) = prefixes(&mut engine, &options(Some(disk.path())));
            for prompt in &prompts {
                expected.push(serve(&mut engine, &mut prefixes, None, &Pipeline::full(), prompt).0);
            }
            prefixes.finish(engine.store(), WAIT);
            let disk = prefixes.statistics().disk.unwrap();
            assert!(disk.files >= 2, "{model}: {disk:?}");
            assert!(heard.lock().unwrap().is_empty(), "{heard:?}");
        }
        let mut engine = engine(&model);
        let (mut prefixes, heard) = prefixes(&mut engine, &options(Some(disk.path())));
        let mut found = Vec::new();
        for (prompt, expected) in prompts.iter().zip(&expected) {
            let (got, tokens) = serve(&mut engine, &mut prefixes, None, &Pipeline::full(), prompt);
            assert!(got == *expected, "{model}: {tokens} tokens were known");
            found.push(tokens);
        }
        // The longest whole blocks, of windows too: each was written up to the last one of its prompt.
        assert_eq!(found, [256, 256, 128], "{model}");
        assert!(prefixes.statistics().disk.unwrap().read >= 2, "{model}");
        assert!(heard.lock().unwrap().is_empty(), "{heard:?}");
        prefixes.check(engine.store()).unwrap();
    }
}

#[test]
fn another_model_or_tokenizer_finds_nothing_and_removes_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let prompt = tokens(0, 140);
    let serve = |model: &str, tokenizer: bool| {
        let mut engine = engine(model);
        let words = engine.tokenizer().ok().filter(|_| tokenizer).map(|_| self::engine(model));
        let words = words.as_ref().map(|engine| engine.tokenizer().unwrap());
        let report = Arc::new(|text: &str| panic!("{text}"));
        let options = options(Some(disk.path()));
        let mut prefixes =
            PrefixCache::new(&options, engine.store(), words, report, Box::new(|| {})).unwrap();
        let found = self::serve(&mut engine, &mut prefixes, None, &Pipeline::full(), &prompt).1;
        prefixes.finish(engine.store(), WAIT);
        found
    };
    let all = [("llama", false), ("llama-tied-bf16", false), ("qwen3", false), ("llama", true)];
    for (model, tokenizer) in all {
        assert_eq!(serve(model, tokenizer), 0, "{model}");
    }
    for (model, tokenizer) in all {
        assert_eq!(serve(model, tokenizer), 128, "{model}");
    }
}

#[test]
fn a_tree_without_room_still_serves() {
    let mut engine = engine("llama");
    let mut plain = self::engine("llama");
    let disk = tempfile::tempdir().unwrap();
    let all = PrefixOptions { max_bytes: 40_000, ..options(Some(disk.path())) };
    let (mut prefixes, _) = prefixes(&mut engine, &all);
    let (mut most, mut hits) = (0, 0);
    for round in 0..30 {
        let prompt = [tokens(round % 3, 150), tokens(round % 7, 50)].concat();
        let expected = fresh(&mut plain, &Pipeline::full(), &prompt);
        let (got, found) = serve(&mut engine, &mut prefixes, None, &Pipeline::full(), &prompt);
        assert!(got == expected);
        hits += usize::from(found > 0);
        most = most.max(prefixes.statistics().bytes);
        prefixes.finish(engine.store(), WAIT);
        prefixes.check(engine.store()).unwrap();
        assert!(prefixes.statistics().bytes <= 40_000);
    }
    // A prompt has 36,864 bytes of whole blocks, and one that shares with a locked one brings more for the moment.
    assert!(most > 40_000, "{most} bytes have room");
    // There are three beginnings, and memory has room for one: from the second time on each comes from the disk.
    assert_eq!((hits, prefixes.statistics().disk.unwrap().read), (27, 27));
}
