//! A service on tiny random models, requests for it, and what the engine says to them alone.

#![allow(dead_code, reason = "each test uses its part")]

use kvik_engine::{
    Engine, EngineOptions, GenerateRequest, Generation, Reply, Request, RequestError, SamplingOptions,
    Service, ServiceOptions, StopReason, TokenLogprob, Update, Usage,
    prefix::PrefixSharing,
    sampling::{MaskError, TokenMask},
    service::Timings,
};
use kvik_kv::Pipeline;
use std::{
    ops::ControlFlow,
    path::Path,
    thread,
    time::{Duration, Instant},
};

pub const CONTEXT_TOKENS: usize = 1024;

pub fn engine(model: &str) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf").join(model);
    let options = EngineOptions {
        threads: Some(2),
        context_tokens: Some(CONTEXT_TOKENS),
        prefill_chunk_tokens: 48,
        ..EngineOptions::default()
    };
    Engine::load(&path.join("model.gguf"), &options).unwrap()
}

/// Little of everything, and nothing shared.
pub fn options() -> ServiceOptions {
    ServiceOptions {
        step_tokens: 64,
        max_running: 16,
        max_waiting: 100,
        kv_budget_bytes: Some(64 << 20),
        prefix_sharing: PrefixSharing::Off,
        ..ServiceOptions::default()
    }
}

pub fn service(options: ServiceOptions) -> Service {
    Service::start(engine("llama"), options).unwrap()
}

pub fn tokens(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| 3 + ((i + seed) * 31 + i * i * (7 + seed)) as u32 % 93).collect()
}

pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions::greedy(),
        ignore_end_of_text: true,
        logprobs: Some(2),
        ..Request::default()
    }
}

/// What came of a request.
#[derive(Debug)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    pub prefix_tokens: usize,
    pub end: Result<(StopReason, Usage, Timings), RequestError>,
}

impl Answer {
    pub fn usage(&self) -> Usage {
        self.end.as_ref().unwrap().1
    }

    pub fn reason(&self) -> &StopReason {
        &self.end.as_ref().unwrap().0
    }

    pub fn timings(&self) -> Timings {
        self.end.as_ref().unwrap().2
    }
}

pub fn answer(mut reply: Reply) -> Answer {
    let (mut ids, mut text, mut logprobs, mut starts) = (Vec::new(), String::new(), Vec::new(), Vec::new());
    loop {
        match reply.blocking_next().expect("a reply ends with its end") {
            Update::Started { prefix_tokens } => starts.push(prefix_tokens),
            Update::Token { id, text: piece, logprob } => {
                ids.push(id);
                text.push_str(&piece);
                logprobs.extend(logprob);
            }
            Update::Tail(piece) => text.push_str(&piece),
            Update::Embedding(_) => unreachable!("nobody asked"),
            Update::Finished { reason, usage, timings } => {
                assert_eq!((starts.len(), usage.completion_tokens), (1, ids.len()));
                assert!(reply.blocking_next().is_none());
                let end = Ok((reason, usage, timings));
                return Answer { ids, text, logprobs, prefix_tokens: starts[0], end };
            }
            Update::Failed(error) => {
                return Answer { ids, text, logprobs, prefix_tokens: 0, end: Err(error) };
            }
        }
    }
}

/// What the engine gives alone.
pub fn alone(engine: &mut Engine, prompt: &[u32], pipeline: &Pipeline, max_tokens: usize) -> Generation {
    let mut session = engine.session_with(pipeline).unwrap();
    let request = GenerateRequest {
        prompt: prompt.to_vec(),
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions::greedy(),
        logprobs: Some(2),
        ignore_end_of_text: true,
        ..GenerateRequest::default()
    };
    engine.generate(&mut session, &request, &mut |_| ControlFlow::Continue(())).unwrap()
}

pub fn assert_same(got: &Answer, expected: &Generation, what: &str) {
    assert_eq!(got.ids, expected.completion_ids, "{what}");
    // To the last bit.
    assert_eq!(got.logprobs, expected.logprobs, "{what}");
    assert_eq!(got.text, expected.text, "{what}");
    assert_eq!(*got.reason(), expected.stop, "{what}");
}

/// Pipelines whose methods act at the end of a prompt, after each chunk, after each step, and never.
pub const PIPELINES: [&str; 6] = [
    "full",
    "snapkv(budget=40,window=8)",
    "h2o(budget=64,cut=chunk)",
    "kivi(residual=32)",
    "streaming(budget=60)",
    "h2o(budget=64)+kivi(residual=32)",
];

pub fn pipeline(index: usize) -> Pipeline {
    Pipeline::parse(PIPELINES[index % PIPELINES.len()]).unwrap()
}

/// Waits until `condition` holds, which it has to soon.
pub fn soon(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Submits all of `requests`, each for `max_tokens` tokens.
pub fn submit_all(service: &Service, requests: &[(Vec<u32>, Pipeline)], max_tokens: usize) -> Vec<Reply> {
    let submit = |(prompt, pipeline): &(Vec<u32>, Pipeline)| {
        let request = Request { pipeline: pipeline.clone(), ..greedy(prompt.clone(), max_tokens) };
        service.submit(request).unwrap()
    };
    requests.iter().map(submit).collect()
}

/// Holds a request up at every token, as a larger model would.
struct Slow;

impl TokenMask for Slow {
    fn mask(&mut self, _logits: &mut [f32]) -> Result<(), MaskError> {
        thread::sleep(Duration::from_millis(2));
        Ok(())
    }

    fn accept(&mut self, _token: u32) -> Result<(), MaskError> {
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }
}

pub fn slow(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { constraint: Some(Box::new(Slow)), ..greedy(prompt, max_tokens) }
}
