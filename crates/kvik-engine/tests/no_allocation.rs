//! Decoding allocates nothing: a counting allocator watches two hundred steps, on the caller's thread and the workers'.

use kvik_engine::{Engine, EngineOptions, Event, GenerateRequest, SamplingOptions};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are those that the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Steps before the count begins: buffers that are sized by the first steps have their size then.
const WARM_UP: usize = 4;
const STEPS: usize = 204;

/// Allocations between two tokens of a text, in a session of its own.
fn allocations(engine: &mut Engine, sampling: &SamplingOptions) -> usize {
    let mut session = engine.session();
    let request = GenerateRequest {
        prompt: (3..40).collect(),
        max_tokens: Some(STEPS),
        sampling: sampling.clone(),
        stop: vec!["a stop that never comes".to_owned(), "\u{1}".to_owned()],
        ignore_end_of_text: true,
        ..GenerateRequest::default()
    };
    let (mut step, mut at_start, mut at_end) = (0, 0, 0);
    let generation = engine.generate(&mut session, &request, &mut |event| {
        if let Event::Token { .. } = event {
            step += 1;
            at_end = ALLOCATIONS.load(Relaxed);
            if step == WARM_UP {
                at_start = at_end;
            }
        }
        ControlFlow::Continue(())
    });
    assert_eq!(generation.unwrap().completion_ids.len(), STEPS);
    at_end - at_start
}

#[test]
fn decoding_allocates_nothing() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf");
    let sampled = SamplingOptions { repeat_penalty: 1.2, seed: Some(1), ..SamplingOptions::default() };
    let nucleus = SamplingOptions { top_k: 0, temperature: 3.0, seed: Some(1), ..SamplingOptions::default() };
    // Quantised weights of every kind; and windows, which give blocks back while decoding.
    for name in ["llama-mixed", "gemma3"] {
        let options =
            EngineOptions { threads: Some(2), context_tokens: Some(1024), ..EngineOptions::default() };
        let mut engine = Engine::load(&tiny.join(name).join("model.gguf"), &options).unwrap();
        for sampling in [SamplingOptions::greedy(), sampled.clone(), nucleus.clone()] {
            // A worker thread allocates its name when it starts, which may be late on a busy machine, but only once:
            // what decoding allocates shows in every attempt.
            let attempts: Vec<usize> = (0..3).map(|_| allocations(&mut engine, &sampling)).collect();
            assert!(attempts.contains(&0), "{attempts:?} allocations of {name} in {} steps", STEPS - WARM_UP);
        }
    }
    // The allocator does count.
    let before = ALLOCATIONS.load(Relaxed);
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATIONS.load(Relaxed) > before);
}
