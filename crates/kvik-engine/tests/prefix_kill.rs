//! A process that is killed while it writes prefixes: whatever is in the folder afterwards gives the right tokens.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kvik_engine::{
    Engine, EngineOptions, Session,
    prefix::{KvDir, PrefixCache, PrefixOptions, PrefixSharing},
};
use kvik_kv::Pipeline;

const FOLDER: &str = "KVIK_TEST_PREFIX_FOLDER";
const ROUND: &str = "KVIK_TEST_PREFIX_ROUND";
const KILLS: usize = 100;
const KINDS: usize = 24;

fn engine() -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let options = EngineOptions {
        threads: Some(1),
        context_tokens: Some(1100),
        sessions: 40,
        ..EngineOptions::default()
    };
    Engine::load(&path, &options).unwrap()
}

fn prefixes(engine: &mut Engine, path: &Path, max_bytes: u64) -> PrefixCache {
    let kv_dir = Some(KvDir { path: path.to_owned(), max_bytes });
    let options = PrefixOptions { sharing: PrefixSharing::All, block_tokens: 64, max_bytes: 1 << 30, kv_dir };
    PrefixCache::new(&options, engine.store(), None, Arc::new(|_| {}), Box::new(|| {})).unwrap()
}

/// 1,030 tokens: of each kind others, all with a common beginning.
fn prompt(kind: usize) -> Vec<u32> {
    let token = |i: usize| if i < 100 { i * i } else { i * 31 + i * i * (7 + kind) + kind };
    (0..1030).map(|i| 3 + token(i) as u32 % 93).collect()
}

/// Writes prefixes until it is killed. The folder has no room for all, so that files come and go.
#[test]
#[ignore = "it is the process that a_hundred_kills_leave_no_wrong_token starts and kills"]
fn write_until_killed() {
    let (Ok(path), Ok(round)) = (env::var(FOLDER), env::var(ROUND)) else { return };
    let round: usize = round.parse().unwrap();
    let mut engine = engine();
    for first in (round..).step_by(KINDS / 2) {
        let mut prefixes = prefixes(&mut engine, Path::new(&path), 3 << 20);
        for kind in (first..first + KINDS / 2).map(|kind| kind % KINDS) {
            let prompt = prompt(kind);
            let mut session = engine.session();
            engine.read(&mut session, &prompt, true).unwrap();
            prefixes.keep(engine.store(), None, &prompt, session.cache());
            while prefixes.idle(engine.store()) {}
        }
        prefixes.finish(engine.store(), Duration::from_secs(60));
    }
}

fn files(path: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|other| other == suffix)).collect()
}

#[test]
fn a_hundred_kills_leave_no_wrong_token() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut engine = engine();
    let logits = |engine: &mut Engine, session: &mut Session, rest: &[u32]| {
        let mut all = engine.read(session, rest, true).unwrap();
        engine.decode(session, &[5, 6, 7], &mut |_, logits| all.extend_from_slice(logits)).unwrap();
        all
    };
    let expected: Vec<Vec<f32>> = (0..KINDS)
        .map(|kind| {
            let mut session = engine.session();
            logits(&mut engine, &mut session, &prompt(kind))
        })
        .collect();
    let (mut interrupted, mut hits, mut misses) = (0, 0, 0);
    for round in 0..KILLS {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "write_until_killed", "--ignored", "--nocapture"])
            .env(FOLDER, path)
            .env(ROUND, round.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It is killed in the middle of a write as often as that can be caught, and otherwise at any time.
        let started = Instant::now();
        let most = Duration::from_millis(300 + 13 * (round as u64 % 20));
        while started.elapsed() < most {
            if round % 2 == 0 && started.elapsed() > most / 2 && !files(path, "partial").is_empty() {
                break;
            }
            thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        interrupted += usize::from(!files(path, "partial").is_empty());

        let mut prefixes = prefixes(&mut engine, path, 3 << 20);
        assert!(files(path, "partial").is_empty(), "leftovers are removed");
        assert_eq!(prefixes.statistics().disk.unwrap().damaged, 0, "no file is there in part");
        for kind in (0..4).map(|step| (round * 5 + step * 7) % KINDS) {
            let prompt = prompt(kind);
            if let Some(loading) = prefixes.prepare(engine.store(), None, &Pipeline::full(), &prompt) {
                while prefixes.is_loading(&loading) {
                    prefixes.poll(engine.store());
                }
            }
            let begun = prefixes.begin(engine.store(), None, &Pipeline::full(), &prompt).unwrap();
            hits += usize::from(begun.tokens == 1024);
            misses += usize::from(begun.tokens < 1024);
            let mut session = Session::resume(begun.cache, &prompt[..begun.tokens]);
            let got = logits(&mut engine, &mut session, &prompt[begun.tokens..]);
            assert!(got == expected[kind], "kind {kind} after kill {round}, {} tokens known", begun.tokens);
        }
        prefixes.check(engine.store()).unwrap();
    }
    println!(
        "{KILLS} kills: {interrupted} in the middle of a write; then {hits} prefixes from the disk, {misses} not"
    );
    assert!(interrupted >= KILLS / 10, "{interrupted} kills came in the middle of a write");
    assert!(hits >= KILLS, "{hits} prefixes came from the disk");
}
