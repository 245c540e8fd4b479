//! `kvik serve`: the model behind OpenAI's HTTP API.

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use kvik::models::DEFAULT;
use kvik_engine::{Engine, EngineOptions, KvDir, PrefixSharing, Service, ServiceOptions};
use kvik_kernels::Isa;
use kvik_server::{
    App, Server,
    config::{Bytes, Config, Settings, Sharing},
    log, signals,
};

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

An option --max-running is KVIK_MAX_RUNNING in the environment and max-running in the file; the command line
wins over the environment, which wins over the file. The file also has what keys may do:

  [[key]]
  name = \"ann\"
  sha256 = \"…\"              # or key = \"…\"
  requests-per-minute = 60";

/// Bytes that prefixes on disk may take if nothing else is said.
const KV_DIR_BYTES: u64 = 4 << 30;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let settings = match &args.config {
        Some(path) => args.settings.clone().over(Settings::read(path)?),
        None => args.settings.clone(),
    };
    log::install(settings.log.as_deref().unwrap_or("info"), settings.log_format.unwrap_or_default())?;
    if let Err(unknown) = Isa::requested() {
        bail!("KVIK_ISA: {unknown}");
    }
    // What is wrong with the options is said before a model is fetched and loaded for them.
    let config = settings.resolve("")?;
    let options = service_options(&settings, &config)?;
    let engine = EngineOptions {
        threads: settings.threads,
        context_tokens: settings.ctx,
        pipeline: config.pipeline.clone(),
        ..EngineOptions::default()
    };
    options.check()?;
    engine.check()?;
    let listen = config.listen;
    let cannot_listen = || format!("cannot listen at {listen}: choose another with --listen");
    // Closed again: nobody is to connect before there is a model that answers.
    drop(TcpListener::bind(listen).with_context(cannot_listen)?);

    let path = kvik::pull::ensure(settings.model.as_deref().unwrap_or(DEFAULT))?;
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let config = settings.resolve(&name)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("http")
        .enable_all()
        .build()?;
    let engine = Engine::load(&path, &engine)?;
    let service = Service::start_reporting(engine, options, Arc::new(log::trouble))?;
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

fn service_options(settings: &Settings, config: &Config) -> anyhow::Result<ServiceOptions> {
    let defaults = ServiceOptions::default();
    let bytes = |Bytes(bytes): Bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
    let kv_dir = settings.kv_dir.clone().map(|path| KvDir {
        path,
        max_bytes: settings.kv_dir_memory.map_or(KV_DIR_BYTES, |Bytes(bytes)| bytes),
    });
    let options = ServiceOptions {
        step_tokens: settings.step_tokens.unwrap_or(defaults.step_tokens),
        max_running: settings.max_running.unwrap_or(defaults.max_running),
        max_waiting: settings.max_waiting.unwrap_or(defaults.max_waiting),
        block_tokens: settings.block_tokens.unwrap_or(defaults.block_tokens),
        kv_budget_bytes: settings.kv_memory.map(bytes),
        kv_dir,
        prefix_sharing: match config.sharing {
            Sharing::Off => PrefixSharing::Off,
            Sharing::PerKey => PrefixSharing::PerKey,
            Sharing::All => PrefixSharing::All,
        },
    };
    for (name, value) in [("step-tokens", options.step_tokens), ("max-running", options.max_running)] {
        if value == 0 {
            bail!("{name} is 0: give a number from 1 on");
        }
    }
    Ok(options)
}
