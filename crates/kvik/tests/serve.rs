//! `kvik serve` as a process: options from three places, SmolLM2 behind the API, signals.

#[allow(dead_code, reason = "the model's path is enough here")]
mod smollm2;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

struct Server {
    child: Child,
    address: SocketAddr,
}

/// Starts `kvik serve` and waits until it listens.
fn start(args: &[&str], environment: &[(&str, &str)]) -> Server {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvik"))
        .args(["serve", "--listen", "127.0.0.1:0", "--kv-memory", "256MiB", "--model"])
        .arg(smollm2::path())
        .args(args)
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("http://")?.split('/').next()?.parse().ok());
    let Some(address) = address else { panic!("it does not listen: {:?}", child.wait()) };
    // What it logs from here on must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Server { child, address }
}

impl Server {
    fn open(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    fn post(&self, path: &str, body: &Value) -> String {
        let mut answer = String::new();
        self.open(path, body).read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(&self) {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_model_answers_and_a_signal_lets_it_finish() {
    let mut server = start(&[], &[]);
    let sky = json!([{"role": "user", "content": "What is the capital of France? Answer in one word."}]);
    let answer =
        server.post("/v1/chat/completions", &json!({"messages": sky, "temperature": 0, "max_tokens": 16}));
    assert!(answer.contains("Paris"), "{answer}");
    let compressed = json!({"messages": sky, "temperature": 0, "max_tokens": 16, "kv": "kivi(bits=4)"});
    assert!(server.post("/v1/chat/completions", &compressed).contains("Paris"));

    let story = json!({"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": true, "stream": true});
    let mut stream = server.open("/v1/completions", &story);
    stream.read_exact(&mut [0; 64]).unwrap();
    server.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn options_come_from_file_environment_and_command_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "model-name = \"of-file\"\nmax-body = 500\nkv = \"kivi\"\n[[key]]\nname = \"ann\"\nkey = \"k\"",
    )
    .unwrap();
    let config = file.path().to_str().unwrap();
    let server = start(&["--config", config, "--kv", "snapkv"], &[("KVIK_MODEL_NAME", "of-environment")]);
    let completion = json!({"model": "of-environment", "prompt": "a", "max_tokens": 1});
    assert!(server.post("/v1/completions", &completion).starts_with("HTTP/1.1 200"));
    assert!(server.post("/v1/completions", &json!({"prompt": "a".repeat(1000)})).starts_with("HTTP/1.1 413"));
    let mut stream = TcpStream::connect(server.address).unwrap();
    write!(stream, "GET /v1/kv HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut report = String::new();
    stream.read_to_string(&mut report).unwrap();
    assert!(report.contains("\"pipeline\":\"snapkv\""), "{report}");
}

#[test]
fn wrong_options_are_refused_before_a_model_is_loaded() {
    for (args, said) in [
        (&["--max-body", "12 apples"][..], "512MiB"),
        (&["--kv", "snapkv("], "kv: "),
        (&["--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (&["--spill-dir", "/no/such/folder"], "no such folder"),
        (&["--log", "a=b=c"], "log: "),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_kvik"))
            .args(["serve", "--model", "/no/such/model.gguf"])
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(said), "{args:?}: {error}");
    }
}
