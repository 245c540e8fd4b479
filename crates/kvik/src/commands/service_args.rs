//! The engine that `kvik serve` runs, also without its server: options and start.

use std::{ffi::OsString, sync::Arc};

use anyhow::bail;
use clap::{ArgMatches, Args, Command, FromArgMatches, builder::Resettable};
use kvik::models::DEFAULT;
use kvik_engine::{Engine, EngineOptions, KvDir, PrefixSharing, Service, ServiceOptions};
use kvik_kernels::Isa;
use kvik_server::config::{Bytes, Config, Settings, Sharing};

/// Those of [`Settings`] that say how an engine runs and what it remembers; the others are about its model, which commands
/// name themselves, and about HTTP.
const OPTIONS: [&str; 12] = [
    "threads",
    "ctx",
    "kv",
    "kv_memory",
    "kv_dir",
    "kv_dir_memory",
    "spill_dir",
    "prefix_sharing",
    "block_tokens",
    "max_running",
    "max_waiting",
    "step_tokens",
];
/// Bytes that prefixes on disk may take if nothing else is said.
const KV_DIR_BYTES: u64 = 4 << 30;

/// The options of `kvik serve` for an engine without a server, for commands with a flag `--engine`. They are those of the
/// server and mean the same; where one is not given, its environment variable counts, but only when an engine is wanted.
#[derive(Clone, Debug, Default)]
pub struct ServiceArgs {
    /// Those that were given, as on the command line of `kvik serve`.
    given: Vec<OsString>,
}

/// An engine that serves, and what it was started with.
pub struct Serving {
    pub service: Service,
    pub config: Config,
}

impl Args for ServiceArgs {
    fn augment_args(command: Command) -> Command {
        let serve = Settings::augment_args(Command::new("serve"));
        let options = serve.get_arguments().filter(|option| OPTIONS.contains(&option.get_id().as_str()));
        let options = options.map(|option| {
            option.clone().env(Resettable::Reset).requires("engine").help_heading("Engine, with --engine")
        });
        command.args(options)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServiceArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for id in OPTIONS {
            for value in matches.get_raw(id).into_iter().flatten() {
                let mut argument = OsString::from(format!("--{}=", id.replace('_', "-")));
                argument.push(value);
                self.given.push(argument);
            }
        }
        Ok(())
    }
}

impl ServiceArgs {
    /// Starts the engine for `model`, or for the one that the environment names, or for the default one.
    pub fn start(&self, model: Option<&str>) -> anyhow::Result<Serving> {
        let model = model.map(|model| OsString::from(format!("--model={model}")));
        let serve = Settings::augment_args(Command::new("kvik serve").no_binary_name(true));
        // What was given has been checked already; what is in the environment may be wrong.
        let matches = serve.get_matches_from(self.given.iter().cloned().chain(model));
        let settings = Settings::from_arg_matches(&matches)?;
        start(&settings, Arc::new(|said: &str| eprintln!("{said}")))
    }
}

/// Loads the model, fetched on first use, and starts the service that `settings` describe; `report` hears what goes wrong and
/// is worked around. What is wrong with the options is said before a model is loaded for them.
pub fn start(settings: &Settings, report: kvik_engine::prefix::Report) -> anyhow::Result<Serving> {
    if let Err(unknown) = Isa::requested() {
        bail!("KVIK_ISA: {unknown}");
    }
    let config = settings.resolve("")?;
    let options = service_options(settings, &config)?;
    let engine = EngineOptions {
        threads: settings.threads,
        context_tokens: settings.ctx,
        pipeline: config.pipeline.clone(),
        ..EngineOptions::default()
    };
    options.check()?;
    engine.check()?;
    let path = kvik::pull::ensure(settings.model.as_deref().unwrap_or(DEFAULT))?;
    let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let config = settings.resolve(&name)?;
    let engine = Engine::load(&path, &engine)?;
    let service = Service::start_reporting(engine, options, report)?;
    Ok(Serving { service, config })
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
        spill_dir: config.spill_dir.clone(),
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
