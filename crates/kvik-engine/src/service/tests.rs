//! What happens when something that must not happen does.

use super::*;
use crate::{
    EngineOptions, KvDir, PrefixSharing, SamplingOptions,
    sampling::{MaskError, TokenMask},
};
use kvik_kv::{CacheError, Method, OpenCache, Pipeline, PoolExhausted};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

fn engine() -> Engine {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let options = EngineOptions {
        threads: Some(2),
        context_tokens: Some(512),
        prefill_chunk_tokens: 300,
        // shadowkv takes more blocks for a context than other methods.
        sessions: 2,
        ..EngineOptions::default()
    };
    Engine::load(&tiny, &options).unwrap()
}

fn small() -> ServiceOptions {
    ServiceOptions { kv_budget_bytes: Some(64 << 20), ..Default::default() }
}

fn service() -> Service {
    Service::start(engine(), small()).unwrap()
}

fn request(max_tokens: usize) -> Request {
    Request {
        prompt: (3..40).collect(),
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions::greedy(),
        ignore_end_of_text: true,
        ..Request::default()
    }
}

fn last(mut reply: Reply) -> Update {
    let mut last = None;
    while let Some(update) = reply.blocking_next() {
        last = Some(update);
    }
    last.unwrap()
}

/// Breaks when it is asked, or when it is dropped.
struct Broken {
    when_asked: bool,
}

impl TokenMask for Broken {
    fn mask(&mut self, _logits: &mut [f32]) -> Result<(), MaskError> {
        if self.when_asked { panic!("the mask is broken") } else { Ok(()) }
    }

    fn accept(&mut self, _token: u32) -> Result<(), MaskError> {
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        if !self.when_asked {
            panic!("the loop is broken");
        }
    }
}

#[test]
fn a_constraint_that_panics_fails_its_request_alone() {
    let service = service();
    let other = service.submit(request(50)).unwrap();
    let broken = Request { constraint: Some(Box::new(Broken { when_asked: true })), ..request(50) };
    let broken = service.submit(broken).unwrap();
    assert_eq!(last(broken), Update::Failed(RequestError::Internal("the mask is broken".to_owned())));
    assert!(matches!(last(other), Update::Finished { usage: Usage { completion_tokens: 50, .. }, .. }));
    assert!(service.status().healthy);
}

#[test]
fn a_panic_in_the_loop_is_told_to_everyone() {
    let service = service();
    let other = service.submit(request(400)).unwrap();
    let broken = Request { constraint: Some(Box::new(Broken { when_asked: false })), ..request(5) };
    let broken = service.submit(broken).unwrap();
    let _ = last(broken);
    assert_eq!(last(other), Update::Failed(RequestError::Internal("the loop is broken".to_owned())));
    let status = service.status();
    assert_eq!((status.healthy, status.failure.as_deref()), (false, Some("the loop is broken")));
    let refused = service.submit(request(5)).unwrap_err();
    assert_eq!(refused, SubmitError::Unhealthy("the loop is broken".to_owned()));
    service.stop(Duration::from_secs(60));
}

/// The tokens of an answer, and its last update.
fn ids_and_end(mut reply: Reply) -> (Vec<u32>, Update) {
    let (mut ids, mut end) = (Vec::new(), None);
    while let Some(update) = reply.blocking_next() {
        match update {
            Update::Token { id, .. } => ids.push(id),
            update => end = Some(update),
        }
    }
    (ids, end.unwrap())
}

/// A service without its thread, and the loop to be run by hand.
fn by_hand() -> (Service, Worker) {
    by_hand_with(small(), Arc::new(|_| {}))
}

fn by_hand_with(options: ServiceOptions, report: Report) -> (Service, Worker) {
    let engine = engine();
    let (facts, control) = (Arc::clone(engine.facts()), Arc::new(Control::new()));
    let (sender, inbox) = channel();
    let worker = Worker::new(engine, options, Arc::clone(&control), inbox, report, Box::new(|| {})).unwrap();
    let service = Service {
        facts,
        control,
        inbox: sender,
        max_waiting: 10,
        budget_bytes: 64 << 20,
        thread: Mutex::default(),
    };
    (service, worker)
}

#[test]
fn a_step_that_fails_is_the_fault_of_one() {
    for pipeline in ["full", "kivi(residual=32)"] {
        let (service, mut worker) = by_hand();
        let submit = |from: u32| {
            let pipeline = kvik_kv::Pipeline::parse(pipeline).unwrap();
            service.submit(Request { prompt: (from..from + 40).collect(), pipeline, ..request(20) }).unwrap()
        };
        let replies = [submit(3), submit(20), submit(40)];
        let rounds = |worker: &mut Worker, count: usize| {
            (0..count).for_each(|_| {
                assert!(worker.receive());
                worker.step();
            });
        };
        rounds(&mut worker, 5);
        // As if the model could not compute it.
        let tokens = &mut worker.running[1].job.tokens;
        *tokens.last_mut().unwrap() = u32::MAX;
        let mut count = 0;
        while !worker.running.is_empty() {
            rounds(&mut worker, 1);
            count += 1;
            assert!(count < 200);
        }
        let [first, broken, last] = replies.map(ids_and_end);
        assert!(matches!(broken.1, Update::Failed(RequestError::Engine(_))), "{broken:?}");
        for (from, (got, end)) in [(3u32, first), (40, last)] {
            assert!(matches!(end, Update::Finished { .. }), "{end:?}");
            let mut engine = engine();
            let mut session = engine.session_with(&kvik_kv::Pipeline::parse(pipeline).unwrap()).unwrap();
            let alone = crate::GenerateRequest {
                prompt: (from..from + 40).collect(),
                max_tokens: Some(20),
                sampling: SamplingOptions::greedy(),
                ignore_end_of_text: true,
                ..Default::default()
            };
            let expected =
                engine.generate(&mut session, &alone, &mut |_| std::ops::ControlFlow::Continue(()));
            assert_eq!(got, expected.unwrap().completion_ids, "{pipeline}");
        }
    }
}

#[test]
fn a_moved_cache_that_cannot_be_read_is_computed_again() {
    for damage in ["cut", "changed"] {
        let folder = tempfile::tempdir().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sentences = Arc::clone(&heard);
        let report: Report = Arc::new(move |text: &str| lock(&sentences).push(text.to_owned()));
        let spill_dir = Some(folder.path().to_owned());
        let options = ServiceOptions { spill_dir, prefix_sharing: PrefixSharing::Off, ..small() };
        let (service, mut worker) = by_hand_with(options, report);
        let prompt: Vec<u32> = (3..93).collect();
        let reply = service.submit(Request { prompt: prompt.clone(), ..request(20) }).unwrap();
        for _ in 0..5 {
            assert!(worker.receive());
            worker.step();
        }
        worker.preempt(0);
        assert!(worker.waiting[0].moved.is_some());
        soon_filed(&worker);
        // The file has no name, but this process has it open.
        let mut files = fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().path());
        let of_folder = |file: &std::path::PathBuf| {
            fs::read_link(file).is_ok_and(|target| target.starts_with(folder.path()))
        };
        let file = fs::File::options().write(true).open(files.find(of_folder).unwrap()).unwrap();
        match damage {
            "cut" => file.set_len(5000).unwrap(),
            _ => std::os::unix::fs::FileExt::write_all_at(&file, &[0xa5; 8], 5000).unwrap(),
        }
        drop(file);
        to_the_end(&mut worker);
        assert_eq!(ids_and_end(reply).0, alone(prompt, 20), "{damage}");
        assert_eq!((worker.totals.preemptions_to_tier, worker.totals.restored_tokens), (1, 0));
        let heard = lock(&heard);
        assert!(heard.len() == 1 && heard[0].contains("computed again"), "{damage}: {heard:?}");
    }
}

/// What the engine gives alone.
fn alone(prompt: Vec<u32>, max_tokens: usize) -> Vec<u32> {
    alone_with(&Pipeline::full(), prompt, max_tokens)
}

fn alone_with(pipeline: &Pipeline, prompt: Vec<u32>, max_tokens: usize) -> Vec<u32> {
    let mut engine = engine();
    let mut session = engine.session_with(pipeline).unwrap();
    let request = crate::GenerateRequest {
        prompt,
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions::greedy(),
        ignore_end_of_text: true,
        ..Default::default()
    };
    let answer = engine.generate(&mut session, &request, &mut |_| std::ops::ControlFlow::Continue(()));
    answer.unwrap_or_else(|error| panic!("{pipeline}: {error}")).completion_ids
}

/// Runs the loop until there is nothing to do.
fn to_the_end(worker: &mut Worker) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(worker.receive());
        worker.step();
        if worker.running.is_empty() && worker.waiting.is_empty() {
            return;
        }
    }
}

#[test]
fn every_cache_that_can_be_written_down_is_moved() {
    // What becomes of it while the prompt is read, and behind it.
    let pipelines = [
        ("full", [true, true]),
        ("snapkv(budget=40,window=8)", [true, true]),
        ("h2o(budget=64,cut=chunk)", [true, true]),
        ("kivi(residual=32)", [true, true]),
        ("streaming(budget=60)", [true, true]),
        ("streaming(budget=64,positions=slot)", [true, true]),
        ("l2norm(budget=64,skip=0)", [true, true]),
        ("random(budget=64)", [true, true]),
        ("h2o(budget=64)+kivi(residual=32)", [true, true]),
        ("minicache(start=0)", [true, true]),
        ("shadowkv(budget=64)", [true, false]),
        // The first says that all has room in RAM.
        ("tier(ram=1MiB)", [true, true]),
        ("tier(ram=1KiB)", [false, false]),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (kv, moved) in pipelines {
        let pipeline = Pipeline::parse(kv).unwrap();
        let spill_dir = Some(folder.path().to_owned());
        let prefix_sharing = PrefixSharing::Off;
        let options = ServiceOptions { step_tokens: 96, spill_dir, prefix_sharing, ..small() };
        let (service, mut worker) = by_hand_with(options, Arc::new(|text| panic!("{text}")));
        let prompt: Vec<u32> = (0..400).map(|i| 3 + i * i % 90).collect();
        let asked = Request { prompt: prompt.clone(), pipeline: pipeline.clone(), ..request(90) };
        let reply = service.submit(asked).unwrap();
        let mut got = Vec::new();
        // The last time it has just come back.
        for rounds in [1, 10, 40, 3, 1] {
            let (mut computed, start) = (0, Instant::now());
            while computed < rounds {
                assert!(worker.receive() && start.elapsed() < Duration::from_secs(20));
                worker.step();
                computed += worker.running.len();
            }
            let (before, running) = (worker.totals.preemptions_to_tier, &worker.running[0]);
            let (reading, tokens) = (running.unread() > 0, running.cache.len());
            worker.preempt(0);
            got.push((reading, tokens, worker.totals.preemptions_to_tier > before));
            // From memory or from the file.
            if rounds != 3 {
                soon_filed(&worker);
            }
        }
        to_the_end(&mut worker);
        for (reading, tokens, was_moved) in got {
            assert_eq!(was_moved, moved[usize::from(!reading)], "{kv}: {tokens} tokens, reading: {reading}");
        }
        assert_eq!(ids_and_end(reply).0, alone_with(&pipeline, prompt, 90), "{kv}");
    }
}

/// Waits until the file of a job that waits is written, if there is one.
fn soon_filed(worker: &Worker) {
    let start = Instant::now();
    while worker.waiting[0].moved.as_ref().is_some_and(|moved| moved.image.file_bytes() == 0) {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn an_embedding_goes_on_with_what_was_moved() {
    let embed = |preempt: bool| {
        let folder = tempfile::tempdir().unwrap();
        let spill_dir = Some(folder.path().to_owned());
        let options = ServiceOptions { step_tokens: 96, spill_dir, ..small() };
        let (service, mut worker) = by_hand_with(options, Arc::new(|text| panic!("{text}")));
        let prompt = (0..450).map(|i| 3 + i % 90).collect();
        let mut reply = service.submit(Request { prompt, want_hidden: true, ..Request::default() }).unwrap();
        for _ in 0..3 {
            assert!(worker.receive());
            worker.step();
        }
        if preempt {
            assert!(worker.running[0].unread() > 0 && worker.running[0].cache.len() >= 100);
            worker.preempt(0);
        }
        to_the_end(&mut worker);
        assert_eq!(worker.totals.preemptions_to_tier, u64::from(preempt));
        assert_eq!(worker.totals.prompt_tokens, 450);
        loop {
            if let Update::Embedding(mean) = reply.blocking_next().unwrap() {
                return mean;
            }
        }
    };
    assert_eq!(embed(true), embed(false));
}

/// Has no room after a step, once.
struct FullOnce(Arc<AtomicBool>);

impl Method for FullOnce {
    fn after_step(&mut self, _cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        match self.0.swap(false, SeqCst) {
            true => Err(PoolExhausted { capacity: 1, block_bytes: 64 }.into()),
            false => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[test]
fn a_store_that_is_full_after_a_step_costs_time_and_nothing_else() {
    let options = ServiceOptions { prefix_sharing: PrefixSharing::Off, ..small() };
    let (service, mut worker) = by_hand_with(options, Arc::new(|_| {}));
    let prompt = |from: u32| (from..from + 40).collect::<Vec<u32>>();
    let replies =
        [3, 20, 40].map(|from| service.submit(Request { prompt: prompt(from), ..request(20) }).unwrap());
    assert!(worker.receive());
    worker.schedule();
    let full = Arc::new(AtomicBool::new(false));
    let cache = worker.engine.local.store.sequence_of(vec![Box::new(FullOnce(Arc::clone(&full)))]);
    worker.running[1].cache = cache;
    for _ in 0..5 {
        worker.step();
        assert!(worker.receive());
    }
    // The first has its token by then, and the last its rows without one.
    full.store(true, SeqCst);
    worker.step();
    assert!(!full.load(SeqCst) && worker.totals.preemptions == 1);
    to_the_end(&mut worker);
    for (from, reply) in [3, 20, 40].into_iter().zip(replies) {
        let (ids, end) = ids_and_end(reply);
        assert!(matches!(end, Update::Finished { .. }), "{end:?}");
        assert_eq!(ids, alone(prompt(from), 20), "{from}");
    }
}

#[test]
fn a_prefix_on_a_disk_that_hangs_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sentences = Arc::clone(&heard);
    let report: Report = Arc::new(move |text: &str| lock(&sentences).push(text.to_owned()));
    let options = || ServiceOptions {
        kv_dir: Some(KvDir { path: folder.path().to_owned(), max_bytes: 1 << 30 }),
        ..small()
    };
    let prompt: Vec<u32> = (0..200).map(|i| 3 + i % 90).collect();
    let ask = || Request { prompt: prompt.clone(), ..request(5) };
    {
        let (service, mut worker) = by_hand_with(options(), Arc::clone(&report));
        let _reply = service.submit(ask()).unwrap();
        to_the_end(&mut worker);
        worker.prefixes.finish(&mut worker.engine.local.store, Duration::from_secs(20));
    }
    let (service, mut worker) = by_hand_with(options(), report);
    // Whoever opens a pipe that nobody writes to waits.
    let mut files = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
    let file = files.find(|file| file.extension().is_some_and(|suffix| suffix == "kvprefix")).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    worker.prefixes.patience = Duration::from_millis(200);
    // A pipeline that begins with no prefix waits for none.
    let other = Request { pipeline: Pipeline::parse("h2o(budget=64)").unwrap(), ..ask() };
    let _reply = service.submit(other).unwrap();
    assert!(worker.receive() && worker.waiting[0].loading.is_none());
    to_the_end(&mut worker);
    let reply = service.submit(ask()).unwrap();
    assert!(worker.receive() && worker.waiting[0].loading.is_some());
    worker.step();
    assert_eq!((worker.running.len(), worker.waiting.len()), (0, 1));
    to_the_end(&mut worker);
    assert_eq!(ids_and_end(reply).0, alone(prompt.clone(), 5));
    assert!(lock(&heard).iter().any(|sentence| sentence.contains("was not read within")), "{heard:?}");
    // Nobody waits a second time, and the end does not wait at all.
    worker.prefixes.forget(&mut worker.engine.local.store);
    let _reply = service.submit(ask()).unwrap();
    assert!(worker.receive() && worker.waiting[0].loading.is_none());
    let start = Instant::now();
    drop((worker, service));
    assert!(start.elapsed() < Duration::from_secs(10));
    // Lets the thread end.
    drop(fs::File::options().write(true).open(&file));
}
