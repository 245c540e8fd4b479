//! A hub on the loopback interface: an HTTP server of one thread whose answers the test chooses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a client asked for: path with query, and headers in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

/// What the server answers. With `cut_at` it closes the connection after so many bytes of the body.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub cut_at: Option<usize>,
}

/// A running server; it ends with the test's process.
pub struct Server {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(mut answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(request) = read_request(&stream) {
                    record.lock().unwrap().push(request.clone());
                    // A client that went away is the client's affair.
                    let _ = write_reply(stream, answer(&request));
                }
            }
        });
        Server { address, seen }
    }

    /// The paths asked for so far that contain `part`, with their `Range` headers.
    pub fn asked(&self, part: &str) -> Vec<Option<String>> {
        let seen = self.seen.lock().unwrap();
        let fitting = seen.iter().filter(|request| request.path.contains(part));
        fitting.map(|request| request.headers.get("range").cloned()).collect()
    }
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn json(value: serde_json::Value) -> Reply {
        Reply { status: 200, body: value.to_string().into_bytes(), ..Reply::default() }
    }

    pub fn redirect(to: &str) -> Reply {
        Reply { status: 302, headers: vec![("Location".into(), to.into())], ..Reply::default() }
    }

    /// `content` as a server that knows ranges sends it.
    pub fn file(content: &[u8], request: &Request) -> Reply {
        let Some(range) = request.headers.get("range") else {
            return Reply { status: 200, body: content.to_vec(), ..Reply::default() };
        };
        let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        let end = content.len();
        let header = ("Content-Range".into(), format!("bytes {start}-{}/{end}", end - 1));
        Reply { status: 206, headers: vec![header], body: content[start..].to_vec(), cut_at: None }
    }

    pub fn cut_at(self, bytes: usize) -> Reply {
        Reply { cut_at: Some(bytes), ..self }
    }
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(':').map(|(key, value)| (key.to_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Request { path, headers })
}

fn write_reply(mut stream: TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    head += &format!("Content-Length: {}\r\n", reply.body.len());
    for (key, value) in &reply.headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    stream.write_all(&reply.body[..reply.cut_at.unwrap_or(reply.body.len())])
}
