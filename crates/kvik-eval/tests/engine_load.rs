//! Load on an engine in this process, on a tiny model: what is counted, what is refused, what is preempted.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kvik_engine::{Engine, EngineOptions, Service, ServiceOptions};
use kvik_eval::{
    client::{EngineTarget, Exchange, Outcome, Target},
    load::{Levels, LoadReport, Pace, Progress, Replay, drive, replay, watched},
    trace::{
        Trace,
        prompts::{Material, Prompt, PromptWriter},
    },
};
use kvik_kv::Pipeline;

fn target(options: ServiceOptions, limit: Duration) -> Arc<EngineTarget> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    let engine = EngineOptions { threads: Some(1), context_tokens: Some(512), ..EngineOptions::default() };
    let service = Service::start(Engine::load(&path, &engine).unwrap(), options).unwrap();
    Arc::new(EngineTarget { service: Arc::new(service), pipeline: Pipeline::full(), whole: true, limit })
}

fn roomy() -> ServiceOptions {
    ServiceOptions { kv_budget_bytes: Some(16 << 20), ..ServiceOptions::default() }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

async fn one(target: &EngineTarget, prompt: &Prompt, tokens: u64) -> Exchange {
    target.exchange(target.ask(prompt, tokens, 1), Instant::now(), 0.0).await
}

#[tokio::test]
async fn a_trace_is_replayed_with_its_shared_blocks_and_its_lengths() {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/traces/mooncake-conversation-head.jsonl.zst");
    // Blocks of 64 tokens, as the engine shares them.
    let mut trace = Trace::read(&file).unwrap().first(16).resized(0.125).faster(10.0);
    trace.clip(512);
    let target = target(roomy(), Duration::from_secs(60));
    let Material::Tokens(tokens) = target.material("It was the best of times, it was the worst").unwrap()
    else {
        panic!("tokens")
    };
    let load = Replay {
        trace: &trace,
        prompts: PromptWriter::new(Material::Tokens(tokens), 1),
        turns_wait: true,
        watch: Duration::from_millis(20),
    };
    let (exchanges, samples) = replay(&target, &load, &mut go_on).await;
    let lengths: Vec<(u64, u64)> = exchanges.iter().map(|e| (e.prompt_tokens, e.completion_tokens)).collect();
    let wanted: Vec<(u64, u64)> =
        trace.requests.iter().map(|r| (u64::from(r.input_tokens), u64::from(r.output_tokens))).collect();
    assert_eq!(lengths, wanted);
    // Pieces are tokens.
    assert!(
        exchanges.iter().all(|e| e.gaps_s.len() as u64 + 1 == e.completion_tokens && e.ttft_s() > Some(0.0))
    );
    let report =
        LoadReport::new(&target.name(), target.model(), "test", &exchanges, samples, Levels::default());
    assert_eq!((report.failed(), report.server.unwrap().preemptions), (0, Some(0.0)));
    // The first block of all prompts is the same.
    assert!(report.tokens.cached >= 8 * 64, "{:?}", report.tokens);
}

#[tokio::test]
async fn refusals_and_silence_are_outcomes() {
    let engine = target(roomy(), Duration::from_secs(60));
    let exchange = one(&engine, &Prompt::Tokens(vec![5; 600]), 4).await;
    let Outcome::Refused { status: 400, message } = &exchange.outcome else { panic!("{exchange:?}") };
    assert!(message.contains("the context holds 512"), "{message}");
    let exchange = one(&engine, &Prompt::Tokens(vec![1 << 20]), 4).await;
    assert_eq!(exchange.outcome.name(), "refused");
    // Text is cut by the model's own tokenizer.
    let exchange = one(&engine, &Prompt::Text("the times".into()), 4).await;
    assert!(
        exchange.is_complete() && exchange.prompt_tokens > 2 && exchange.completion_tokens == 4,
        "{exchange:?}"
    );

    let full = target(ServiceOptions { max_waiting: 0, ..roomy() }, Duration::from_secs(60));
    let exchange = one(&full, &Prompt::Tokens(vec![5; 6]), 4).await;
    assert_eq!(exchange.outcome, Outcome::Overloaded { status: 429 });

    // Looked at once, long before the last of so many tokens.
    let hasty = target(roomy(), Duration::ZERO);
    let exchange = one(&hasty, &Prompt::Tokens(vec![5; 100]), 400).await;
    assert_eq!(exchange.outcome, Outcome::Timeout);
    hasty.service.drain();
    let exchange = one(&hasty, &Prompt::Tokens(vec![5; 6]), 4).await;
    assert_eq!(exchange.outcome, Outcome::Overloaded { status: 503 });
}

#[tokio::test]
async fn preemptions_are_counted_to_the_last() {
    // Room for two or so of eight that grow to 500 tokens of 128 bytes each.
    let options =
        ServiceOptions { kv_budget_bytes: Some(192 << 10), max_running: 8, ..ServiceOptions::default() };
    let target = target(options, Duration::from_secs(120));
    let ask = |index: usize| target.ask(&Prompt::Tokens(vec![10 + index as u32; 100]), 400, 1);
    let (began, pace) = (Instant::now(), Pace::Closed { users: 8, requests: 8 });
    let mut progress = go_on;
    let load = drive(&target, &pace, ask, began, &mut progress);
    // No look but the first and the last.
    let (exchanges, samples) = watched(&*target, began, Duration::from_secs(600), load).await;
    assert!(exchanges.iter().all(Exchange::is_complete));
    let counted = target.service.status().totals.preemptions as f64;
    let report = LoadReport::new("x", "tiny", "test", &exchanges, samples, Levels::default());
    assert_eq!((report.samples.len(), report.server.unwrap().preemptions), (2, Some(counted)));
    assert!(counted > 0.0);
}
