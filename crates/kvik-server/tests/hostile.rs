//! Requests that nobody means well: thousands of them, and the server goes on as if nothing had been.

mod support;

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{Client, Random, read_answer, start};

const ROUTES: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
];

/// A value of any type.
fn value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 7 } else { 9 }) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(-1),
        3 => json!(1e308),
        4 => json!(u64::MAX),
        5 => json!("\u{0}\u{feff}<|im_start|>system\u{202e}".repeat(random.below(50))),
        6 => json!(""),
        7 => Value::Array((0..random.below(5)).map(|_| value(random, depth - 1)).collect()),
        _ => {
            let names = ["type", "role", "content", "text", "function", "name", "schema", "$ref", "messages"];
            let field = |random: &mut Random| ((*random.one_of(&names)).to_owned(), value(random, depth - 1));
            Value::Object((0..random.below(5)).map(|_| field(random)).collect())
        }
    }
}

const FIELDS: [&str; 32] = [
    "model",
    "messages",
    "prompt",
    "input",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "n",
    "seed",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "response_format",
    "tools",
    "tool_choice",
    "kv",
    "echo",
    "tokens",
    "content",
    "text",
    "instructions",
    "metadata",
    "chat_template_kwargs",
];

/// A request that is fine but for some fields.
fn nearly_fine(random: &mut Random) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a", "content": "a",
                             "tokens": [1, 2], "max_tokens": 2, "max_output_tokens": 2});
    if random.below(3) == 0 {
        request["stream"] = json!(true);
        if random.below(2) == 0 {
            return request;
        }
    }
    for _ in 0..1 + random.below(3) {
        let field = *random.one_of(&FIELDS);
        request[field] = value(random, 3);
    }
    // What would be long is not what this is about.
    if !request["max_tokens"].is_number() || request["max_tokens"].as_u64().is_some_and(|n| n > 4) {
        request["max_tokens"] = json!(2);
    }
    if request["max_completion_tokens"].as_u64().is_some_and(|n| n > 4) {
        request["max_completion_tokens"] = json!(2);
    }
    request
}

/// Sends one hostile request; it must be answered with a sentence, or with an answer if it happens to be fine.
fn attack(client: &Client, random: &mut Random, streams: &AtomicUsize) {
    let path = *random.one_of(&ROUTES);
    let body: Vec<u8> = match random.below(8) {
        0 => (0..random.below(200)).map(|_| random.below(256) as u8).collect(),
        1 => {
            let text = nearly_fine(random).to_string().into_bytes();
            text[..random.below(text.len())].to_vec()
        }
        2 => {
            let mut text = nearly_fine(random).to_string().into_bytes();
            let at = random.below(text.len());
            text[at] = random.below(256) as u8;
            text
        }
        3 => value(random, 3).to_string().into_bytes(),
        4 => b"[{\"a\":".repeat(20_000),
        5 => json!({"prompt": "a", "messages": [], "stop": vec!["x"; 20_000]}).to_string().into_bytes(),
        _ => nearly_fine(random).to_string().into_bytes(),
    };
    let answer = client.send("POST", path, &body);
    assert!(
        answer.status == 200 || (400..500).contains(&answer.status),
        "{} to {:?}: {}",
        answer.status,
        String::from_utf8_lossy(&body[..body.len().min(500)]),
        answer.text()
    );
    if answer.status != 200 {
        answer.error(answer.status);
    } else if answer.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
        streams.fetch_add(1, Ordering::Relaxed);
        let text = answer.text();
        // Once it has begun, a stream says itself how it ends.
        let ended = text.ends_with("data: [DONE]\n\n")
            || text.contains("event: response.completed")
            || text.contains("event: response.incomplete");
        assert!(ended && !text.contains("internal_error"), "{text}");
    }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

/// The server still answers, and has had no fault of its own.
fn is_well(client: &Client) {
    client.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).ok();
    let metrics = client.get("/metrics").text();
    assert!(metrics.contains("kvik_panics_total 0"), "{metrics}");
}

/// And has no body of a request in its memory any more.
fn is_empty(client: &Client) {
    let metrics = client.get("/metrics").text();
    assert!(metrics.contains("kvik_body_bytes 0"), "{metrics}");
}

#[test]
fn thousands_of_hostile_requests_change_nothing() {
    let server = start("max-body = \"256KiB\"");
    let streams = Arc::new(AtomicUsize::new(0));
    let volley = |seed: u64, requests: usize| {
        let threads: Vec<_> = (0..2)
            .map(|thread| {
                let (client, streams) = (server.client(), Arc::clone(&streams));
                let mut random = Random(seed * 31 + thread);
                thread::spawn(move || (0..requests / 2).for_each(|_| attack(&client, &mut random, &streams)))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    };
    // What the allocator keeps and what is made once is there after the first of them.
    volley(1, 2000);
    let before = resident_bytes();
    volley(2, 8000);
    let after = resident_bytes();
    assert!(after < before + (48 << 20), "{} MiB grew to {} MiB", before >> 20, after >> 20);
    let streams = streams.load(Ordering::Relaxed);
    assert!(streams > 200, "{streams} streams");
    is_well(&server.client());
    is_empty(&server.client());
}

#[test]
fn deep_and_wide_schemas_are_refused_or_followed() {
    let server = start("");
    let client = server.client();
    let ask = |schema: Value| {
        let format = json!({"type": "json_schema", "json_schema": {"schema": schema}});
        let request = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "response_format": format});
        let begun = Instant::now();
        let answer = client.post("/v1/chat/completions", &request);
        assert!(answer.status == 200 || answer.status == 400, "{}", answer.text());
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    };
    let deep = (0..100)
        .fold(json!({"type": "integer"}), |schema, _| json!({"type": "object", "properties": {"a": schema}}));
    ask(deep);
    let wide: serde_json::Map<String, Value> =
        (0..2000).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    ask(json!({"type": "object", "properties": wide}));
    ask(json!({"$ref": "#"}));
    ask(json!({"$ref": "file:///etc/passwd"}));
    ask(json!({"type": "string", "pattern": "(a{1000}){1000}"}));
    // Each level doubles what the one below means, without being any longer.
    let level = |level: usize| {
        let below = json!({"$ref": format!("#/$defs/l{}", level.saturating_sub(1))});
        (format!("l{level}"), json!({"allOf": [{"anyOf": [below, below]}, {"anyOf": [below, below]}]}))
    };
    let mut levels: serde_json::Map<String, Value> = (1..30).map(level).collect();
    levels.insert("l0".to_owned(), json!({"type": "integer"}));
    ask(json!({"$defs": levels, "$ref": "#/$defs/l29"}));
    is_well(&client);
}

#[test]
fn slow_senders_and_silent_readers_do_not_stop_others() {
    let server = start("header-seconds = 2\nbody-seconds = 2\nunread-seconds = 2\nmax-connections = 400");
    let client = server.client();
    let heads: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = client.connect();
            stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost:").unwrap();
            stream
        })
        .collect();
    let bodies: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = client.connect();
            stream
                .write_all(
                    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{\"prompt\"",
                )
                .unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    is_well(&client);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for mut stream in bodies {
        assert_eq!(read_answer(&mut stream).unwrap().status, 408);
    }
    for mut stream in heads {
        // Closed, with or without a word.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    is_well(&client);
    is_empty(&client);
}

#[test]
fn what_is_not_http_is_not_answered_for_long() {
    let server = start("header-seconds = 2");
    let client = server.client();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\na",
        b"GET /\x00\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = client.connect();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let begun = Instant::now();
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(begun.elapsed() < Duration::from_secs(10), "{bytes:?}");
    }
    for path in
        ["/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/%2e%2e/etc/passwd", "/v1/models/%00"]
    {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
    let mut many = client.clone();
    for number in 0..200 {
        many = many.with(&format!("x-{number}"), "y");
    }
    assert!([431, 400].contains(&many.get("/health").status));
    is_well(&client);
}
