//! Where a server is, and one connection to it for each request, as so many users would have.

use std::{io, str::FromStr, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, client::conn::http1, header,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes of an answer that is not streamed, at most.
const MOST_BYTES: usize = 64 << 20;

/// A server that speaks OpenAI's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Host and port, as in the `Host` header.
    authority: String,
    /// What to connect to.
    address: (String, u16),
    /// What stands before `/v1`, without a slash at its end.
    path: String,
    key: Option<String>,
}

/// A text is no address of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is encrypted.
    #[error("'{0}' is encrypted, and load is sent in the clear: give the http:// address behind the proxy")]
    Encrypted(String),
    /// It is something else.
    #[error("'{0}' is no address of a server such as http://127.0.0.1:8080")]
    Malformed(String),
}

/// A request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection.
    #[error("cannot connect to {address}: {source}")]
    Unreachable {
        /// The server.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("the connection to {address} broke: {reason}")]
    Broken {
        /// The server.
        address: String,
        /// How.
        reason: String,
    },
    /// It took too long.
    #[error("{address} gave no answer within {seconds} s")]
    Timeout {
        /// The server.
        address: String,
        /// The limit.
        seconds: f64,
    },
    /// The server says no.
    #[error("{path} answered {status}: {message}")]
    Status {
        /// What was asked.
        path: String,
        /// The status.
        status: StatusCode,
        /// The beginning of what came with it.
        message: String,
    },
    /// What came is not what was asked for.
    #[error("{path} answered something else than {wanted}")]
    Unexpected {
        /// What was asked.
        path: String,
        /// What should have come.
        wanted: &'static str,
    },
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        if text.starts_with("https://") {
            return Err(EndpointError::Encrypted(text.to_owned()));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let uri: hyper::http::uri::Authority = authority.parse().map_err(|_| malformed())?;
        // What stands behind the host must be a port.
        let no_port = uri.port_u16().is_none() && authority.len() > uri.host().len();
        if uri.host().is_empty() || authority.contains('@') || no_port {
            return Err(malformed());
        }
        let host = uri.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        if path.bytes().any(|byte| byte <= b' ' || byte >= 0x7F) {
            return Err(malformed());
        }
        Ok(Self {
            authority: authority.to_owned(),
            address: (host, uri.port_u16().unwrap_or(80)),
            path: path.to_owned(),
            key: None,
        })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl Endpoint {
    /// The same with an API key, sent as a bearer token.
    #[must_use]
    pub fn with_key(self, key: Option<String>) -> Self {
        Self { key, ..self }
    }

    /// Sends `body` to `path` (or asks for it without a body) and waits until the answer begins.
    ///
    /// # Errors
    /// There is no connection, or it breaks.
    pub async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>, CallError> {
        let address = || self.to_string();
        let broken = |error: &dyn std::fmt::Display| CallError::Broken {
            address: address(),
            reason: error.to_string(),
        };
        let unreachable = |source| CallError::Unreachable { address: address(), source };
        let stream =
            TcpStream::connect((self.address.0.as_str(), self.address.1)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        // It ends with the answer's last byte, or when whoever reads the answer drops it.
        tokio::spawn(connection);
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.path))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| broken(&error))?;
        sender.send_request(request).await.map_err(|error| broken(&error))
    }

    /// The whole answer of `path`.
    ///
    /// # Errors
    /// As [`send`](Self::send); or the server says no, or takes longer than `limit`.
    pub async fn call(&self, path: &str, body: Option<Bytes>, limit: Duration) -> Result<Vec<u8>, CallError> {
        let call = async {
            let response = self.send(path, body).await?;
            let status = response.status();
            let bytes = self.read_all(response).await?;
            if status.is_success() {
                return Ok(bytes);
            }
            Err(CallError::Status { path: path.to_owned(), status, message: complaint(&bytes) })
        };
        let late = |_| CallError::Timeout { address: self.to_string(), seconds: limit.as_secs_f64() };
        tokio::time::timeout(limit, call).await.map_err(late)?
    }

    async fn read_all(&self, response: Response<Incoming>) -> Result<Vec<u8>, CallError> {
        let whole = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        let broken = |error: Box<dyn std::error::Error + Send + Sync>| CallError::Broken {
            address: self.to_string(),
            reason: error.to_string(),
        };
        Ok(whole.map_err(broken)?.to_bytes().to_vec())
    }

    /// The beginning of what a server says with a refusal.
    pub(super) async fn complaint(&self, response: Response<Incoming>) -> String {
        self.read_all(response).await.map_or_else(|error| error.to_string(), |bytes| complaint(&bytes))
    }
}

/// What went wrong, from a body such as `{"error": {"message": "..."}}`, else its first characters.
fn complaint(bytes: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let message = parsed.as_ref().and_then(|body| {
        let error = body.get("error").unwrap_or(body);
        error.get("message").unwrap_or(error).as_str().map(str::to_owned)
    });
    let text = message.unwrap_or_else(|| String::from_utf8_lossy(bytes).into_owned());
    let text: String = text.trim().chars().take(200).collect();
    if text.is_empty() { "nothing more".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_what_is_usual() {
        for (text, shown, address) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080", ("127.0.0.1", 8080)),
            ("localhost:9000/v1/", "http://localhost:9000", ("localhost", 9000)),
            ("http://[::1]:81/kvik/v1", "http://[::1]:81/kvik", ("::1", 81)),
            ("http://example.org", "http://example.org", ("example.org", 80)),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(
                (endpoint.to_string().as_str(), (endpoint.address.0.as_str(), endpoint.address.1)),
                (shown, address)
            );
        }
        assert!(matches!("https://x".parse::<Endpoint>(), Err(EndpointError::Encrypted(_))));
        for text in ["", "http://", "http://a b", "http://me:secret@host", "http://h:99999", "http://h/a b"] {
            assert!(matches!(text.parse::<Endpoint>(), Err(EndpointError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        assert_eq!(complaint(br#"{"error":{"message":"too long"}}"#), "too long");
        assert_eq!(complaint(br#"{"error":"busy"}"#), "busy");
        assert_eq!(complaint(br#"{"message":"no"}"#), "no");
        assert_eq!(complaint(b"<html>"), "<html>");
        assert_eq!(complaint(b" "), "nothing more");
    }
}
