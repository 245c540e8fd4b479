//! The client and the load generator against a server whose latencies are known.

mod fake_server;

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use fake_server::{Manners, start};
use kvik_eval::{
    client::{Api, Exchange, HttpTarget, Target},
    load::{Levels, LoadReport, Pace, Slot, Turn, drive, material, watched},
    trace::prompts::{Material, Prompt},
};

/// Timers on a busy machine may be this much late; they are never early.
const SLACK_MS: f64 = 60.0;

fn target(address: &str, limit_s: f64) -> Arc<HttpTarget> {
    Arc::new(HttpTarget {
        endpoint: address.parse().unwrap(),
        api: Api::Completions,
        model: "fake".into(),
        extensions: true,
        fields: serde_json::from_str(r#"{"kv": "kivi(bits=4)"}"#).unwrap(),
        limit: Duration::from_secs_f64(limit_s),
    })
}

async fn load(target: &Arc<HttpTarget>, pace: &Pace, tokens: u64) -> Vec<Exchange> {
    let ask = |index: usize| target.ask(&Prompt::Tokens(vec![7; 40 + index % 3]), tokens, index as u64);
    drive(target, pace, ask, Instant::now(), &mut |_| ControlFlow::Continue(())).await
}

fn report(exchanges: &[Exchange]) -> LoadReport {
    LoadReport::new("http://fake", "fake", "test", exchanges, Vec::new(), Levels::default())
}

fn within(value: f64, least: f64, what: &str) {
    assert!((least - 1.5..least + SLACK_MS).contains(&value), "{what}: {value} ms, expected {least}");
}

#[tokio::test]
async fn a_closed_loop_measures_the_servers_latencies_and_keeps_its_users() {
    let (address, server) = start(Manners::default()).await;
    let exchanges = load(&target(&address, 30.0), &Pace::Closed { users: 3, requests: 12 }, 11).await;
    let report = report(&exchanges);
    assert_eq!((report.requests, report.complete, report.tokens.completion), (12, 12, 12 * 11));
    assert_eq!(report.tokens.prompt, (0..12).map(|index| 40 + index % 3).sum::<u64>());
    // All prompts begin alike; only the first is new to the server.
    assert_eq!(report.tokens.cached, 11 * 32);
    within(report.ttft.unwrap().p50, 60.0, "first token");
    within(report.itl.unwrap().p50, 10.0, "between tokens");
    within(report.tpot.unwrap().p50, 10.0, "per token");
    within(report.latency.unwrap().p50, 160.0, "answer");
    // Four answers of 160 ms one after the other for each user.
    within(report.seconds * 1000.0 / 4.0, 160.0, "the whole, by answer");
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.most_under_way, 3);
    let body = &seen.bodies[0];
    assert_eq!(
        (&body["ignore_eos"], &body["min_tokens"], &body["kv"]),
        (&true.into(), &11.into(), &"kivi(bits=4)".into())
    );
    assert_eq!(body["prompt"].as_array().unwrap().len(), 40);
}

#[tokio::test]
async fn an_open_loop_sends_on_time_whatever_the_server_does() {
    // A server that does not answer within the limit.
    let manners = Manners { first: Duration::from_secs(60), ..Manners::default() };
    let (address, server) = start(manners).await;
    let slots = (0..100).map(|index| Slot { due_s: f64::from(index) * 0.01, after: None }).collect();
    let began = Instant::now();
    let exchanges = load(&target(&address, 1.5), &Pace::Open(slots), 4).await;
    assert!(began.elapsed() < Duration::from_secs(10));
    let report = report(&exchanges);
    assert_eq!((report.requests, report.complete), (100, 0));
    assert_eq!((report.failures[0].kind, report.failures[0].requests), ("timeout", 100));
    assert!(exchanges.iter().all(|exchange| exchange.sent_s >= exchange.due_s - 0.0015));
    let lateness = report.lateness.unwrap();
    assert!(lateness.p50 < 5.0 && lateness.p99 < SLACK_MS, "{lateness:?}");
    assert!(server.seen.lock().unwrap().most_under_way > 90);
}

#[tokio::test]
async fn every_kind_of_failure_is_told_apart_and_counted() {
    let (address, _server) = start(Manners { trouble: true, ..Manners::default() }).await;
    let exchanges = load(&target(&address, 2.0), &Pace::Closed { users: 8, requests: 8 }, 5).await;
    let kinds: Vec<&str> = exchanges.iter().map(|exchange| exchange.outcome.name()).collect();
    let expected =
        ["complete", "overloaded", "refused", "disconnected", "timeout", "malformed", "refused", "complete"];
    assert_eq!(kinds, expected, "{:?}", exchanges.iter().map(|e| &e.outcome).collect::<Vec<_>>());
    assert_eq!(exchanges[2].outcome.message(), Some("the prompt is too long"));
    assert_eq!(exchanges[6].outcome.message(), Some("out of memory"));
    // What came before the connection ended was measured.
    assert_eq!((exchanges[3].gaps_s.len(), exchanges[3].completion_tokens), (1, 2));
    let report = report(&exchanges);
    assert_eq!((report.complete, report.failed()), (2, 6));
    // Nobody is there.
    let nobody = load(&target("http://127.0.0.1:9", 2.0), &Pace::Closed { users: 1, requests: 1 }, 1).await;
    assert_eq!(nobody[0].outcome.name(), "unreachable");
}

#[tokio::test]
async fn a_turn_waits_for_the_answer_before_it() {
    let (address, _server) = start(Manners::default()).await;
    let slots = vec![
        Slot { due_s: 0.0, after: None },
        Slot { due_s: 0.01, after: Some(Turn { before: 0, think_s: 0.0 }) },
        Slot { due_s: 0.02, after: None },
        Slot { due_s: 0.03, after: Some(Turn { before: 1, think_s: 0.0 }) },
    ];
    let exchanges = load(&target(&address, 30.0), &Pace::Open(slots), 5).await;
    assert!(exchanges[1].sent_s >= exchanges[0].end_s && exchanges[3].sent_s >= exchanges[1].end_s);
    assert!(exchanges[2].sent_s < exchanges[0].end_s);
    // Its latency counts from when it could be sent.
    within(exchanges[1].ttft_s().unwrap() * 1000.0, 60.0, "first token of a turn that waited");
}

#[tokio::test]
async fn a_turn_comes_when_its_user_has_thought_about_the_answer() {
    let (address, _server) = start(Manners::default()).await;
    let turn = |before, think_s| Some(Turn { before, think_s });
    // Answers take 60 ms.
    let slots = vec![
        Slot { due_s: 0.0, after: None },
        Slot { due_s: 0.01, after: turn(0, 0.2) }, // held, and then thought about
        Slot { due_s: 0.1, after: turn(0, 0.3) },  // answered before it is due, and thought about for longer
        Slot { due_s: 0.5, after: turn(0, 0.1) },  // on time
    ];
    let exchanges = load(&target(&address, 30.0), &Pace::Open(slots), 1).await;
    let after = |index: usize| exchanges[index].sent_s - exchanges[0].end_s;
    within(after(1) * 1000.0, 200.0, "a turn that was held");
    within(after(2) * 1000.0, 300.0, "a turn that was not");
    within(exchanges[3].sent_s * 1000.0, 500.0, "a turn on time");
    // Nobody waits for what a user thinks.
    within(exchanges[1].ttft_s().unwrap() * 1000.0, 60.0, "first token behind thinking");
}

#[tokio::test]
async fn tokens_are_counted_from_the_pieces_when_a_server_does_not_say() {
    let (address, _server) = start(Manners { usage: false, ..Manners::default() }).await;
    let exchanges = load(&target(&address, 30.0), &Pace::Closed { users: 2, requests: 2 }, 6).await;
    assert!(exchanges.iter().all(|exchange| (exchange.completion_tokens, exchange.prompt_tokens) == (6, 0)));
    assert_eq!(report(&exchanges).cached_share(), None);
}

#[tokio::test]
async fn a_load_that_is_stopped_returns_what_it_has() {
    let manners = Manners { first: Duration::from_secs(60), ..Manners::default() };
    let (address, _server) = start(manners).await;
    let target = target(&address, 100.0);
    let ask = |_| target.ask(&Prompt::Text("a b".into()), 4, 0);
    let mut looks = 0;
    let exchanges = drive(&target, &Pace::Closed { users: 2, requests: 9 }, ask, Instant::now(), &mut |_| {
        looks += 1;
        if looks == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await;
    assert_eq!(exchanges.iter().map(|exchange| exchange.outcome.name()).collect::<Vec<_>>(), ["stopped"; 2]);
}

#[tokio::test]
async fn the_servers_own_counters_are_kept_over_time() {
    let (address, _server) = start(Manners::default()).await;
    let target = target(&address, 30.0);
    let requests = load(&target, &Pace::Closed { users: 2, requests: 6 }, 6);
    let (exchanges, samples) = watched(&*target, Instant::now(), Duration::from_millis(20), requests).await;
    let report = LoadReport::new("x", "fake", "test", &exchanges, samples, Levels::default());
    let server = report.server.unwrap();
    // One for each request, the last of them too.
    assert_eq!((server.most_running, server.preemptions), (Some(2.0), Some(6.0)));
    assert!(report.samples.len() > 3 && report.html().contains("The server"));
}

#[tokio::test]
async fn counters_are_looked_at_once_more_at_the_end() {
    let (address, _server) = start(Manners::default()).await;
    let target = target(&address, 30.0);
    let requests = load(&target, &Pace::Closed { users: 1, requests: 2 }, 2);
    let (exchanges, samples) = watched(&*target, Instant::now(), Duration::from_secs(60), requests).await;
    assert_eq!(samples.iter().map(|sample| sample.preemptions).collect::<Vec<_>>(), [Some(3.0), Some(5.0)]);
    assert!(samples[1].at_s > exchanges[1].end_s);
}

#[tokio::test]
async fn prompts_are_made_of_what_a_server_lends() {
    let text = "It was the best of times, it was the worst of times";
    for field in ["content", "prompt"] {
        let (address, _server) = start(Manners { tokenize: Some(field), ..Manners::default() }).await;
        let (found, note) = material(&target(&address, 30.0), text, true).await.unwrap();
        let Material::Tokens(tokens) = found else { panic!("{field}: {found:?}") };
        assert_eq!((tokens.len(), note), (text.len(), None));
    }
    let (address, _server) = start(Manners { tokenize: None, ..Manners::default() }).await;
    let (found, note) = material(&target(&address, 30.0), text, true).await.unwrap();
    let Material::Words { words, tokens_per_word } = found else { panic!("{found:?}") };
    assert_eq!((words.len(), tokens_per_word), (12, 1.5));
    assert!(note.unwrap().contains("1.50 tokens per word, as the server counts"));
    let error = material(&target("http://127.0.0.1:9", 1.0), text, true).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot connect to http://127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn chats_are_asked_as_chats() {
    let (address, server) = start(Manners::default()).await;
    let mut chat = (*target(&address, 30.0)).clone();
    (chat.api, chat.extensions) = (Api::Chat, false);
    let exchange = chat.exchange(chat.ask(&Prompt::Text("one two".into()), 3, 1), Instant::now(), 0.0).await;
    assert!(
        exchange.is_complete() && exchange.completion_tokens == 3 && exchange.gaps_s.len() == 2,
        "{exchange:?}"
    );
    let body = &server.seen.lock().unwrap().bodies[0];
    assert_eq!(body["messages"][0]["content"], "one two");
    assert!(body.get("ignore_eos").is_none());
}
