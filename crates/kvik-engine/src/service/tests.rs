//! What happens when something that must not happen does.

use super::*;
use crate::{
    EngineOptions, SamplingOptions,
    sampling::{MaskError, TokenMask},
};
use std::path::Path;

fn engine() -> Engine {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let options = EngineOptions { threads: Some(2), context_tokens: Some(512), ..EngineOptions::default() };
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

/// A service without its thread, and the loop to be run by hand.
fn by_hand() -> (Service, Worker) {
    let engine = engine();
    let (facts, control) = (Arc::clone(engine.facts()), Arc::new(Control::new()));
    let (sender, inbox) = channel();
    let worker =
        Worker::new(engine, small(), Arc::clone(&control), inbox, Arc::new(|_| {}), Box::new(|| {})).unwrap();
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
        let ids = |mut reply: Reply| {
            let (mut ids, mut end) = (Vec::new(), None);
            while let Some(update) = reply.blocking_next() {
                match update {
                    Update::Token { id, .. } => ids.push(id),
                    update => end = Some(update),
                }
            }
            (ids, end.unwrap())
        };
        let [first, broken, last] = replies.map(ids);
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
