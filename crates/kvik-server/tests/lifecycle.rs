//! Requests that end before their answers, and servers that end before their requests.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use support::{Client, events, read_answer, start};

fn stream_of(tokens: usize) -> Vec<u8> {
    json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true, "stream": true, "temperature": 0})
        .to_string()
        .into_bytes()
}

/// Waits until something of the answer has come.
fn begun(mut stream: TcpStream) -> TcpStream {
    let mut head = [0; 256];
    assert!(stream.read(&mut head).unwrap() > 0);
    stream
}

fn running(client: &Client) -> u64 {
    client.get("/v1/kv").ok()["service"]["running"].as_u64().unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_goes_away_cancels_its_request() {
    let server = start("");
    let client = server.client();
    let generated = || {
        let metrics = client.get("/metrics").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("kvik_completion_tokens_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    // A stream.
    let stream = begun(client.open("POST", "/v1/completions", &stream_of(2000)));
    wait_until("it does not run", || running(&client) == 1);
    drop(stream);
    wait_until("a stream without a reader goes on", || running(&client) == 0);
    assert!(generated() < 2000, "{}", generated());
    // A whole answer, whose sender hears nothing until it is complete.
    let whole = json!({"prompt": "a", "max_tokens": 2000, "ignore_eos": true}).to_string();
    let stream = client.open("POST", "/v1/completions", whole.as_bytes());
    wait_until("it does not run", || running(&client) == 1);
    drop(stream);
    wait_until("an answer without a reader goes on", || running(&client) == 0);
    assert!(generated() < 4000, "{}", generated());
}

#[test]
fn accepted_requests_end_before_the_server_does() {
    let mut server = start("grace-seconds = 60");
    let client = server.client();
    let mut streams: Vec<TcpStream> =
        (0..4).map(|_| begun(client.open("POST", "/v1/completions", &stream_of(300)))).collect();
    // An idle connection does not hold it up.
    let idle = client.connect();
    server.begin_shutdown();
    wait_until("it still listens", || TcpStream::connect(server.address).is_err());
    for stream in &mut streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        // The head may be gone with the first bytes; the end is what counts.
        assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    }
    assert!(server.wait(), "the time of grace was needed");
    drop(idle);
}

#[test]
fn a_request_during_the_shutdown_is_told_to_come_back() {
    let mut server = start("grace-seconds = 60");
    let client = server.client();
    // A connection that is kept open, with an answer already behind it.
    let mut kept = client.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut kept = begun(kept);
    let half = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 14\r\n\r\n{\"prompt\":";
    kept.write_all(half).unwrap();
    thread::sleep(Duration::from_millis(200));
    server.begin_shutdown();
    wait_until("it still listens", || TcpStream::connect(server.address).is_err());
    kept.write_all(b"\"a\"}").unwrap();
    let answer = read_answer(&mut kept).unwrap();
    assert_eq!(answer.error(503)["code"], "shutting_down");
    assert!(answer.header("retry-after").is_some());
    assert!(server.wait());
}

#[test]
fn connections_that_were_not_accepted_yet_are_told_to_come_back() {
    let mut server = start("grace-seconds = 60\nmax-connections = 2");
    let client = server.client();
    // Two requests that do not come to their end have all the places.
    let half = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 14\r\n\r\n{\"prompt\":";
    let mut accepted: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = client.connect();
            stream.write_all(half).unwrap();
            stream
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    // More than a runtime takes from a listener at a time.
    let mut waiting: Vec<TcpStream> =
        (0..300).map(|_| client.open("POST", "/v1/completions", b"{\"prompt\":\"a\"}")).collect();
    server.begin_shutdown();
    for stream in waiting.iter_mut() {
        let answer = read_answer(stream).expect("an answer before the end");
        assert_eq!(answer.error(503)["code"], "shutting_down");
    }
    for stream in &mut accepted {
        stream.write_all(b"\"a\"}").unwrap();
        assert_eq!(read_answer(stream).unwrap().status, 503);
    }
    assert!(server.wait());
}

#[test]
fn the_time_of_grace_is_not_exceeded() {
    let mut server = start("grace-seconds = 1");
    let client = server.client();
    let requests = (0..8).map(|_| {
        let request = json!({"prompt": "a", "max_tokens": 2000, "ignore_eos": true, "stream": true, "n": 8});
        begun(client.open("POST", "/v1/completions", request.to_string().as_bytes()))
    });
    let mut requests: Vec<TcpStream> = requests.collect();
    let begun = Instant::now();
    server.begin_shutdown();
    assert!(!server.wait(), "128,000 tokens were generated in a second");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for request in &mut requests {
        let mut rest = Vec::new();
        let _ = request.read_to_end(&mut rest);
    }
}

#[test]
fn a_stream_says_at_its_end_what_it_took() {
    let server = start("");
    let request = json!({"prompt": "abc", "max_tokens": 7, "ignore_eos": true, "stream": true,
                         "stream_options": {"include_usage": true}});
    let answer = server.client().post("/v1/completions", &request);
    let last = events(&answer.text()).pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 7);
    assert_eq!(last["usage"]["prompt_tokens"], 3);
}
