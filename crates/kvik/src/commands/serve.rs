//! `kvik serve`: the model behind OpenAI's HTTP API.

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use kvik_server::{App, Server, config::Settings, log, signals};

use super::service_args::{Serving, start};

/// Serve a model to many users over OpenAI's HTTP API
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A TOML file with any of these options
    #[arg(long, env = "KVIK_CONFIG", value_name = "PATH", help_heading = "Server")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  kvik serve
  kvik serve --model gemma3-270m --listen 0.0.0.0:8080 --api-keys-file keys.txt
  kvik serve --kv 'snapkv(budget=1024)+kivi(bits=4)' --kv-dir /var/cache/kvik
  KVIK_MAX_RUNNING=16 kvik serve --config /etc/kvik.toml

An option --max-running is KVIK_MAX_RUNNING in the environment and max-running in the file; the command line \
wins over the environment, which wins over the file. The file also has what keys may do:

  [[key]]
  name = \"ann\"
  sha256 = \"…\"              # or key = \"…\"
  requests-per-minute = 60";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = match &args.config {
        Some(path) => args.settings.clone().over(Settings::read(path)?),
        None => args.settings.clone(),
    };
    log::install(settings.log.as_deref().unwrap_or("info"), settings.log_format.unwrap_or_default())?;
    let listen = settings.resolve("")?.listen;
    let cannot_listen = || format!("cannot listen at {listen}: choose another with --listen");
    // Closed again: nobody is to connect before there is a model that answers.
    drop(TcpListener::bind(listen).with_context(cannot_listen)?);
    let Serving { service, config } = start(&settings, Arc::new(log::trouble))?;
    let name = service.shared().model_name.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("http")
        .enable_all()
        .build()?;
    let app = Arc::new(App::new(Arc::new(service), config));
    let all_ended = runtime.block_on(async {
        let shutdown = signals()?;
        let server = Server::bind(app).await;
        let server = server.with_context(cannot_listen)?;
        eprintln!("http://{}/ serves {name} (Ctrl-C ends it)", server.address()?);
        Ok::<_, anyhow::Error>(server.run(shutdown).await)
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    if !all_ended {
        bail!(
            "some requests were cancelled when the time of grace was over: raise --grace-seconds to give them more"
        );
    }
    Ok(())
}
