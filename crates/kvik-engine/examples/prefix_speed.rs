//! How long a prompt takes that is computed, that begins with a prefix in memory, and that begins with one on the disk after a
//! restart: `cargo run --release -p kvik-engine --example prefix_speed -- MODEL.gguf TEXT.txt`.

use std::{env, path::Path, sync::Arc, time::Instant};

use kvik_engine::{
    Engine, EngineOptions, Session,
    prefix::{KvDir, PrefixCache, PrefixOptions, PrefixSharing},
};
use kvik_kv::Pipeline;
use kvik_model::tokenizer::EncodeOptions;

const SHARED_TOKENS: usize = 1500;
const OWN_TOKENS: usize = 30;
const ROUNDS: usize = 9;

type Failure = Box<dyn std::error::Error>;

fn prefixes(engine: &mut Engine, path: &Path) -> Result<PrefixCache, Failure> {
    let kv_dir = Some(KvDir { path: path.to_owned(), max_bytes: 1 << 30 });
    let options = PrefixOptions { sharing: PrefixSharing::All, block_tokens: 64, max_bytes: 1 << 30, kv_dir };
    Ok(PrefixCache::new(
        &options,
        engine.store(),
        None,
        Arc::new(|text| eprintln!("{text}")),
        Box::new(|| {}),
    )?)
}

/// Milliseconds of each part of a request until the logits of its first token: waiting for the disk, taking in what came from it,
/// beginning, computing. And the tokens of its prefix.
fn request(
    engine: &mut Engine,
    cache: &mut PrefixCache,
    prompt: &[u32],
) -> Result<([f64; 4], usize), Failure> {
    let full = Pipeline::full();
    let start = Instant::now();
    let loading = cache.prepare(engine.store(), None, &full, prompt);
    let mut polled = Instant::now();
    while loading.is_some_and(|loading| cache.is_loading(&loading)) {
        std::thread::yield_now();
        polled = Instant::now();
        cache.poll(engine.store());
    }
    let loaded = Instant::now();
    let begun = cache.begin(engine.store(), None, &full, prompt)?;
    let mut session = Session::resume(begun.cache, &prompt[..begun.tokens]);
    let ready = Instant::now();
    engine.read(&mut session, &prompt[begun.tokens..], true)?;
    let end = Instant::now();
    let kept = Instant::now();
    drop(cache.keep(engine.store(), None, prompt, session.cache()));
    let keep = kept.elapsed().as_secs_f64() * 1e3;
    if keep > 5.0 {
        println!("  keeping it took {keep:.1} ms");
    }
    let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
    Ok(([ms(start, polled), ms(polled, loaded), ms(loaded, ready), ms(ready, end)], begun.tokens))
}

fn main() -> Result<(), Failure> {
    let mut arguments = env::args().skip(1);
    let (Some(model), Some(text)) = (arguments.next(), arguments.next()) else {
        return Err("usage: prefix_speed MODEL.gguf TEXT.txt".into());
    };
    let options = EngineOptions { sessions: 8, ..EngineOptions::default() };
    let mut engine = Engine::load(Path::new(&model), &options)?;
    let text = std::fs::read_to_string(text)?;
    let ids = engine.tokenizer()?.encode(&text, EncodeOptions::default())?;
    let prompt = |round: usize| -> Vec<u32> {
        let own = &ids[SHARED_TOKENS + round * OWN_TOKENS..][..OWN_TOKENS];
        [&ids[..SHARED_TOKENS], own].concat()
    };
    let folder = tempfile::tempdir()?;
    let names = ["computed", "from memory", "from the disk"];
    let mut times: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        for (case, name) in names.iter().enumerate() {
            let mut cache =
                prefixes(&mut engine, &folder.path().join(if case == 2 { "kept" } else { name }))?;
            if case == 1 || case == 2 && round == 0 {
                request(&mut engine, &mut cache, &prompt(20))?;
            }
            if case == 2 {
                let start = Instant::now();
                cache.idle(engine.store());
                if round == 0 {
                    println!("handing the prefix over took {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
                }
                cache.finish(engine.store(), std::time::Duration::from_secs(60));
                drop(cache);
                cache = prefixes(&mut engine, &folder.path().join("kept"))?;
            }
            let (parts, tokens) = request(&mut engine, &mut cache, &prompt(round))?;
            let total: f64 = parts.iter().sum();
            times[case].push(total);
            let [read, taken, begun, computed] = parts;
            println!(
                "{name}: {total:.1} ms with {tokens} tokens of a prefix; read {read:.1}, taken in {taken:.1}, begun {begun:.2}, \
                 computed {computed:.1}"
            );
        }
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    for (name, median) in names.iter().zip(medians) {
        println!("{name}: median {median:.1} ms, {:.1} times as fast as computed", medians[0] / median);
    }
    Ok(())
}
