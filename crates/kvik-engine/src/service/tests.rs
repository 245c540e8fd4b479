//! What happens when something that must not happen does.

use super::*;
use crate::{
    EngineOptions, SamplingOptions,
    sampling::{MaskError, TokenMask},
};
use std::path::Path;

fn service() -> Service {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let options = EngineOptions { threads: Some(2), context_tokens: Some(512), ..EngineOptions::default() };
    let engine = Engine::load(&tiny, &options).unwrap();
    Service::start(engine, ServiceOptions { kv_budget_bytes: Some(64 << 20), ..Default::default() }).unwrap()
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
