//! A server on a loopback port over a tiny random model, and a client that speaks HTTP by hand.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

pub mod browser;
mod chromium;
mod client;
mod model;
mod random;

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use kvik_engine::{Engine, EngineOptions, Service, ServiceOptions};
use kvik_server::{App, Server, config::Settings};
use tokio::sync::oneshot;

pub use client::{Answer, Client, events, read_answer};
pub use model::CONTEXT_TOKENS;
pub use random::Random;

/// The model's name in the API.
pub const MODEL: &str = "tiny";

/// A running server; dropping it stops it.
pub struct Running {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

/// Starts a server with the options that `settings` writes in TOML.
pub fn start(settings: &str) -> Running {
    start_with(settings, ServiceOptions::default())
}

/// The same, over a service with these options.
pub fn start_with(settings: &str, options: ServiceOptions) -> Running {
    let folder = model::folder();
    let engine = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    let engine = Engine::load(folder.path(), &engine).unwrap();
    let service = Arc::new(Service::start(engine, options).unwrap());
    let settings: Settings = toml::from_str(&format!("listen = \"127.0.0.1:0\"\n{settings}")).unwrap();
    let config = settings.resolve(MODEL).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::bind(Arc::new(App::new(service, config))).await.unwrap();
            tell.send(server.address().unwrap()).unwrap();
            server.run(async { drop(stopped.await) }).await
        })
    });
    let address = told.recv_timeout(Duration::from_secs(30)).unwrap();
    Running { address, stop: Some(stop), thread: Some(thread) }
}

impl Running {
    /// A client without a key.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Tells the server to end.
    pub fn begin_shutdown(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has ended; says whether all requests could end by themselves.
    pub fn wait(mut self) -> bool {
        self.begin_shutdown();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.begin_shutdown();
        if let Some(thread) = self.thread.take() {
            // A test that fails already should not fail again here.
            drop(thread.join());
        }
    }
}
