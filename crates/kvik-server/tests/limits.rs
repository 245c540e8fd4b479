//! Who may use the server and how much of it: keys, rates, sizes, times, overload.

mod support;

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use kvik_engine::ServiceOptions;
use serde_json::{Value, json};
use support::{Client, MODEL, read_answer, start, start_with};

/// Something small to ask.
fn small(client: &Client) -> support::Answer {
    client.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}))
}

fn long() -> Vec<u8> {
    json!({"prompt": "a", "max_tokens": 1500, "ignore_eos": true, "stream": true}).to_string().into_bytes()
}

#[test]
fn nobody_gets_in_without_a_key() {
    let server = start("api-key = [\"sk-one\", \"sk-two\"]");
    let (nobody, one) = (server.client(), server.client().with("authorization", "Bearer sk-one"));
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/v1/kv"),
        ("GET", "/metrics"),
    ] {
        for client in [&nobody, &nobody.clone().with("authorization", "Bearer sk-three")] {
            let answer = client.send(method, path, b"{}");
            assert_eq!(answer.error(401)["code"], "invalid_api_key", "{path}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    small(&one).ok();
    small(&nobody.clone().with("x-api-key", "sk-two")).ok();
    // What tells nothing is open.
    nobody.get("/health").ok();
    nobody.get("/openapi.json").ok();
    let kv = one.get("/v1/kv").ok();
    assert_eq!(kv["prefix_sharing"], "per-key");
}

#[test]
fn a_key_gets_its_requests_and_no_more() {
    let server = start("requests-per-minute = 3\napi-key = [\"one\", \"two\"]");
    let one = server.client().with("authorization", "Bearer one");
    for _ in 0..3 {
        small(&one).ok();
    }
    let refused = small(&one);
    assert_eq!(refused.error(429)["code"], "rate_limit_exceeded");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    // Another key has its own.
    small(&server.client().with("authorization", "Bearer two")).ok();
    // Looking is free.
    one.get("/v1/models").ok();
}

#[test]
fn a_key_gets_its_tokens_and_no_more() {
    let server = start("tokens-per-minute = 50");
    let client = server.client();
    let ask = || {
        client.post("/v1/completions", &json!({"prompt": "0123456789", "max_tokens": 30, "ignore_eos": true}))
    };
    ask().ok();
    ask().ok();
    assert_eq!(ask().error(429)["type"], "rate_limit_error");
}

#[test]
fn a_key_has_only_so_many_requests_at_once() {
    let server = start("concurrent-requests = 2");
    let client = server.client();
    let mut running: Vec<_> = (0..2)
        .map(|_| {
            let mut stream = client.open("POST", "/v1/completions", &long());
            // The first bytes of the answer: it has been let in.
            stream.read_exact(&mut [0; 16]).unwrap();
            stream
        })
        .collect();
    small(&client).error(429);
    running.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    while small(&client).status == 429 {
        assert!(Instant::now() < deadline, "the place of a client that went away stays taken");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn too_much_work_is_turned_away_at_once() {
    let options = ServiceOptions { max_running: 1, max_waiting: 1, ..ServiceOptions::default() };
    let server = start_with("", options);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let client = server.client();
            thread::spawn(move || {
                let request = json!({"prompt": "a", "max_tokens": 200, "ignore_eos": true});
                let mut answers = [0, 0];
                for _ in 0..10 {
                    let answer = client.post("/v1/completions", &request);
                    if answer.status == 200 {
                        answers[0] += 1;
                        continue;
                    }
                    assert_eq!(answer.error(429)["code"], "server_overloaded");
                    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
                    answers[1] += 1;
                }
                answers
            })
        })
        .collect();
    let answers = threads.into_iter().map(|thread| thread.join().unwrap());
    let [done, refused] = answers.fold([0, 0], |sum, answers| [sum[0] + answers[0], sum[1] + answers[1]]);
    assert!(done >= 2 && refused >= 10, "{done} done, {refused} refused");
    small(&server.client()).ok();
}

#[test]
fn a_body_is_read_within_its_limits() {
    let server = start("max-body = 1000\nbody-seconds = 1");
    let client = server.client();
    let huge = vec![b' '; 1_000_000];
    assert_eq!(client.send("POST", "/v1/completions", &huge).error(413)["code"], "request_too_large");
    // Without a length, chunk by chunk.
    let mut stream = client.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for _ in 0..100 {
        if stream
            .write_all(b"64\r\n")
            .and_then(|()| stream.write_all(&[b' '; 100]))
            .and_then(|()| stream.write_all(b"\r\n"))
            .is_err()
        {
            break;
        }
    }
    assert_eq!(read_answer(&mut stream).unwrap().status, 413);
    // Too slow.
    let mut stream = client.connect();
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").unwrap();
    let begun = Instant::now();
    assert_eq!(read_answer(&mut stream).unwrap().error(408)["code"], "request_timeout");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// A request whose text takes a while to be cut into tokens.
fn large(bytes: usize) -> Vec<u8> {
    json!({"content": "a b".repeat(bytes / 3)}).to_string().into_bytes()
}

/// Waits until bodies of so many bytes lie in the server's memory.
fn wait_for_bodies(client: &Client, bytes: usize) {
    let line = format!("kvik_body_bytes {bytes}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client.get("/metrics").text().lines().any(|one| one == line) {
        assert!(Instant::now() < deadline, "never {line}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_body_takes_its_memory_until_it_is_prepared() {
    let server = start("max-bodies = \"1280KiB\"");
    let client = server.client();
    let body = large(1 << 20);
    let (asking, length) = (client.clone(), body.len());
    let first = thread::spawn(move || asking.send("POST", "/tokenize", &body));
    // It has arrived, and is being cut.
    wait_for_bodies(&client, length);
    let refused = client.send("POST", "/tokenize", &large(1 << 19));
    assert_eq!(refused.error(429)["code"], "server_overloaded");
    assert_eq!(first.join().unwrap().status, 200);
    wait_for_bodies(&client, 0);
    assert_eq!(client.send("POST", "/tokenize", &large(1 << 19)).status, 200);
}

#[test]
fn no_more_wait_to_be_prepared_than_may() {
    let server = start("max-waiting = 1");
    let client = server.client();
    let body = large(1 << 19);
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            thread::spawn(move || client.send("POST", "/tokenize", &body).status)
        })
        .collect();
    // Four are cut, one waits.
    wait_for_bodies(&client, 5 * body.len());
    let refused = client.post("/tokenize", &json!({"content": "a"}));
    assert_eq!(refused.error(429)["code"], "server_overloaded");
    threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), 200));
    client.post("/tokenize", &json!({"content": "a"})).ok();
}

#[test]
fn a_head_that_does_not_end_is_not_waited_for() {
    let server = start("header-seconds = 1");
    let mut stream = server.client().connect();
    let begun = Instant::now();
    let mut ended = false;
    // A header every 100 ms, for ever.
    stream.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while begun.elapsed() < Duration::from_secs(10) && !ended {
        let closed = |result: std::io::Result<usize>| match result {
            Ok(read) => read == 0,
            Err(error) => {
                !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            }
        };
        ended = stream.write_all(b"x-a: b\r\n").is_err() || closed(stream.read(&mut [0; 64]));
    }
    assert!(ended && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_answer_ends_when_its_time_is_over() {
    let server = start("request-seconds = 1");
    let begun = Instant::now();
    // Many answers that together take longer than a second.
    let request = json!({"prompt": "a", "max_tokens": 2000, "ignore_eos": true, "n": 64});
    let answer = server.client().post("/v1/completions", &request);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    match answer.status {
        200 => {
            let answer = answer.ok();
            let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
            assert!(tokens < 64 * 2000, "{tokens} tokens were generated in a second");
            assert!(
                answer["choices"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|choice| choice["finish_reason"] == "length")
            );
        }
        // Some of them were not begun in time.
        _ => drop(answer.error(429)),
    }
}

#[test]
fn each_request_has_an_id() {
    let server = start("");
    let client = server.client();
    let ids: Vec<String> =
        (0..3).map(|_| client.get("/health").header("x-request-id").unwrap().to_owned()).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0].starts_with("req-"), "{ids:?}");
    let mine = client.clone().with("x-request-id", "mine-7");
    assert_eq!(mine.get("/nowhere").header("x-request-id"), Some("mine-7"));
    let long = client.with("x-request-id", &"x".repeat(1000));
    assert!(long.get("/health").header("x-request-id").unwrap().starts_with("req-"));
}

#[test]
fn browsers_may_ask_from_the_origins_that_were_named() {
    let server = start("cors-origin = [\"https://a.example\"]\napi-key = [\"k\"]");
    let from = |origin: &str| {
        let client = server.client().with("origin", origin).with("access-control-request-method", "POST");
        let answer = client.send("OPTIONS", "/v1/chat/completions", b"");
        answer.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(from("https://a.example").as_deref(), Some("https://a.example"));
    assert_eq!(from("https://b.example"), None);
    let asking = server.client().with("origin", "https://a.example");
    let asking = asking.with("access-control-request-method", "POST");
    let asking = asking.with("access-control-request-headers", "authorization,content-type");
    let answer = asking.send("OPTIONS", "/v1/chat/completions", b"");
    // A star would not let a key through.
    assert!(answer.header("access-control-allow-headers").unwrap().contains("authorization"));
    let closed = start("");
    let answer = closed.client().with("origin", "https://a.example").get("/v1/models");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(closed.client().get("/v1/models").ok()["data"][0]["id"], MODEL);
}

#[test]
fn keys_do_not_see_each_others_prefixes() {
    let server = start("api-key = [\"one\", \"two\"]");
    let cached = |key: &str| {
        let client = server.client().with("authorization", &format!("Bearer {key}"));
        let answer =
            client.post("/v1/completions", &json!({"prompt": "ab".repeat(150), "max_tokens": 2})).ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("one"), 0);
    assert!(cached("one") >= 256, "a key's own prefix is used");
    assert_eq!(cached("two"), 0, "how fast an answer begins tells what another key has asked");
    // Nor does the tree of one key show to another.
    let client = server.client().with("authorization", "Bearer two");
    let trees = || client.get("/v1/kv").ok()["service"]["prefix_trees"].take();
    let deadline = Instant::now() + Duration::from_secs(20);
    while trees() == json!([]) {
        assert!(Instant::now() < deadline, "a key does not see its own tree");
        thread::sleep(Duration::from_millis(20));
    }
    let trees = trees();
    let owners: Vec<&Value> = trees.as_array().unwrap().iter().map(|tree| &tree["owner"]).collect();
    assert_eq!(
        owners,
        [
            &server.client().with("authorization", "Bearer two").get("/v1/kv").ok()["service"]["owners"][0]["owner"]
        ]
    );
}
