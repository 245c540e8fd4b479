//! A thousand short sequences under every method leave nothing behind: no block, and no byte of the heap.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::atomic::{AtomicIsize, Ordering::Relaxed},
};

use kvik_engine::{Engine, EngineOptions};
use kvik_kv::{Pipeline, methods::METHODS};

static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LIVE.fetch_add(new_size as isize - layout.size() as isize, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Pipelines with budgets that short prompts exceed. Methods that change the model's weights would need a model of their own.
fn pipelines(engine: &Engine) -> Vec<Pipeline> {
    let free = METHODS.iter().filter(|method| method.calibration.is_none());
    let texts = free.map(|method| {
        let settings = [("budget", 40), ("start", 0), ("skip", 0)];
        let has = |name: &str| method.parameters.iter().any(|parameter| parameter.name == name);
        let given = settings.iter().filter(|(name, _)| has(name)).map(|(name, n)| format!("{name}={n}"));
        format!("{}({})", method.name, given.collect::<Vec<_>>().join(",")).replace("()", "")
    });
    let pairs =
        ["full", "snapkv(budget=40)+kivi(residual=32)", "h2o(budget=40,positions=slot)+kivi(residual=32)"];
    let all = texts.chain(pairs.map(String::from)).map(|kv| Pipeline::parse(&kv).unwrap());
    all.filter(|pipeline| pipeline.basis(&pipeline.build(engine.kv_shape()).unwrap()).is_empty()).collect()
}

fn sequence(engine: &mut Engine, pipeline: &Pipeline, index: usize) {
    let mut session = engine.session_with(pipeline).unwrap();
    let tokens: Vec<u32> = (0..50 + index % 30).map(|i| 3 + (i * 31 + index) as u32 % 93).collect();
    engine.read(&mut session, &tokens, true).unwrap();
    let mut copy = index.is_multiple_of(3).then(|| engine.fork(&session));
    engine.decode(&mut session, &tokens[..4], &mut |_, _| {}).unwrap();
    if let Some(copy) = &mut copy {
        engine.decode(copy, &tokens[..2], &mut |_, _| {}).unwrap();
        engine.truncate(copy, 10);
    }
}

#[test]
fn a_thousand_sequences_leave_no_block_and_no_byte_behind() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let options = EngineOptions {
        threads: Some(1),
        context_tokens: Some(128),
        sessions: 2,
        ..EngineOptions::default()
    };
    let mut engine = Engine::load(&path, &options).unwrap();
    let pipelines = pipelines(&engine);
    // Buffers and tables that last have their size after one round of each.
    for index in 0..3 * 30 * pipelines.len() {
        sequence(&mut engine, &pipelines[index % pipelines.len()], index / pipelines.len());
    }
    assert_eq!((engine.store_bytes(), engine.store_blocks()), (0, 0));
    let before = LIVE.load(Relaxed);
    for index in 0..1000 {
        sequence(&mut engine, &pipelines[index % pipelines.len()], index);
    }
    assert_eq!((engine.store_bytes(), engine.store_blocks()), (0, 0));
    assert_eq!(LIVE.load(Relaxed) - before, 0, "bytes of the heap");
    // The allocator does count.
    let kept = std::hint::black_box(vec![0u8; 1000]);
    assert_eq!(LIVE.load(Relaxed) - before, 1000);
    drop(kept);
}
