//! Listening, and ending in good order.
//!
//! Each connection is a task: HTTP/1.1 with a limit on the time that a request's head may take, over a stream that gives
//! up on clients who do not read ([`unread`]). When the server is told to end, it takes no new work, tells whoever still
//! asks to come back, lets what runs go on to its end, and after the time of grace cancels what is left. A second signal
//! ends at once.

mod unread;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{app::App, routes::router};
use unread::Unread;

/// How long a client who has connected, and said nothing when the server is told to end, has to say it.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// How long cancelled requests have to say so to their clients.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Connections that the system holds until they are accepted; of more, clients try again after a second. The usual 128 are fewer
/// than come at once where `max-connections` are served.
const BACKLOG: u32 = 1024;
/// How long accepting pauses when the system has no more descriptors.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// A server that listens but does not answer yet.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

impl Server {
    /// Listens where the configuration says; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub async fn bind(app: Arc<App>) -> io::Result<Self> {
        let listen = app.config.listen;
        let socket = if listen.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As every listener that is bound in one go: an old connection does not stop a new server.
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        Ok(Self { listener: socket.listen(BACKLOG)?, app })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `shutdown` is over, then ends in good order. Says whether all requests could end by themselves.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> bool {
        let Self { listener, app } = self;
        let router = router(Arc::clone(&app));
        let (end, ending) = watch::channel(false);
        let places = Arc::new(Semaphore::new(app.config.max_connections));
        let mut connections = JoinSet::new();
        let serve = |stream, permit, connections: &mut JoinSet<()>| {
            let (app, router, ending) = (Arc::clone(&app), router.clone(), ending.clone());
            connections.spawn(async move {
                app.metrics.connected();
                connection(&app, router, stream, ending).await;
                app.metrics.disconnected();
                drop(permit);
            });
        };
        tokio::pin!(shutdown);
        loop {
            let accepted = async {
                let permit = Arc::clone(&places).acquire_owned().await.ok();
                (listener.accept().await, permit)
            };
            tokio::select! {
                () = &mut shutdown => break,
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, _)) => serve(stream, permit, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(OUT_OF_FILES).await;
                    }
                },
                // Connections that have ended leave the set.
                Some(_) = connections.join_next() => {}
            }
        }

        tracing::info!(connections = connections.len(), grace = ?app.config.grace, "shutting down");
        app.drain();
        // Who has connected before the signal and was not accepted yet gets an answer, too.
        for stream in not_accepted(listener) {
            serve(stream, None, &mut connections);
        }
        let _ = end.send(true);
        let begun = Instant::now();
        let all_ended = tokio::time::timeout(app.config.grace, all(&mut connections)).await.is_ok();
        if !all_ended {
            tracing::warn!(
                connections = connections.len(),
                "the time of grace is over: cancelling what still runs"
            );
            stop(&app, Duration::ZERO).await;
            let _ = tokio::time::timeout(LAST_WORDS, all(&mut connections)).await;
            connections.shutdown().await;
        }
        stop(&app, app.config.grace.saturating_sub(begun.elapsed())).await;
        tracing::info!("ended");
        all_ended
    }
}

/// The connections that wait to be accepted, to the last one before the listener is closed. The system is asked itself: what the
/// runtime knows of a listener may be a moment old, and it hands out so many connections at a time only. Whoever connects between
/// the last look and the close is reset; no system call does both.
fn not_accepted(listener: TcpListener) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    let Ok(listener) = listener.into_std() else { return streams };
    // It does not block: the runtime has made it so. An error of one connection says nothing about the next.
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                streams.extend(
                    stream.inspect_err(|error| tracing::warn!(%error, "cannot take a connection over")),
                );
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    tracing::warn!(%error, "cannot accept all connections");
                }
                return streams;
            }
        }
    }
}

/// Ends the service, which may take until `grace` is over.
async fn stop(app: &Arc<App>, grace: Duration) {
    let service = Arc::clone(&app.service);
    if tokio::task::spawn_blocking(move || service.stop(grace)).await.is_err() {
        tracing::error!("the service failed while it ended");
    }
}

async fn all(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until its client, a timeout or the server ends it.
async fn connection(app: &App, router: Router, stream: TcpStream, mut ending: watch::Receiver<bool>) {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let stream = Unread::new(stream, app.config.unread_timeout);
    let heard = stream.heard();
    let stream = TokioIo::new(stream);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(app.config.header_timeout);
    let connection = builder.serve_connection(stream, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        result = connection.as_mut() => Some(result),
        () = async { ending.wait_for(|ending| *ending).await.map_or((), |_| ()) } => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            // On a connection that has just been accepted, nothing was read yet, and hyper would close it without a word.
            let first = match heard.load(Ordering::Relaxed) {
                true => None,
                false => tokio::time::timeout(FIRST_WORDS, connection.as_mut()).await.ok(),
            };
            if first.is_none() {
                connection.as_mut().graceful_shutdown();
            }
            match first {
                Some(result) => result,
                None => connection.await,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// Waits for SIGTERM or Ctrl-C; the second of them ends the process at once.
///
/// # Errors
/// The signals cannot be caught.
pub fn signals() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        let either = async |terminate: &mut tokio::signal::unix::Signal,
                            interrupt: &mut tokio::signal::unix::Signal| {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        either(&mut terminate, &mut interrupt).await;
        tokio::spawn(async move {
            either(&mut terminate, &mut interrupt).await;
            tracing::warn!("a second signal: ending at once");
            std::process::exit(130);
        });
    })
}
