//! `kvik microscope`: what a prompt's cache holds, as a page.

use std::{
    io,
    net::SocketAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::bail;
use kvik::microscope::{Probe, Record, page};
use kvik_engine::{GenerateRequest, StopReason};
use kvik_model::tokenizer::EncodeOptions;

use super::Interrupted;
use super::conversation::{Conversation, encode_chat};
use super::engine_args::{EngineArgs, Loaded};
use super::input::read_text;
use super::interrupt::Interrupt;
use super::numbers::whole;
use super::output::write;

/// Show which tokens each head keeps, in how many bits, and where attention falls, as a page
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The prompt; `-`, or no prompt at all, reads standard input
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, short, value_name = "PATH", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Continue the prompt as it stands, instead of asking it as the user of a chat
    #[arg(long)]
    raw: bool,
    /// Tokens to decode
    #[arg(long, short = 'n', value_name = "N", default_value_t = 32)]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    max_tokens: usize,
    /// Write the page to this file; `-` is standard output
    #[arg(long, short, value_name = "PATH", default_value = "microscope.html")]
    out: PathBuf,
    /// Serve the page at this address instead of writing a file
    #[arg(long, value_name = "ADDRESS", conflicts_with = "out", num_args = 0..=1, default_missing_value = "127.0.0.1:8090")]
    serve: Option<SocketAddr>,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik microscope -f report.txt --kv 'snapkv(budget=256)+kivi(bits=2)' -o report.html
  kvik microscope \"Why is the sky blue?\" --serve";

/// Bytes of a record that a browser still shows without trouble: each row of each head at each moment takes one.
const MOST_ROWS: usize = 200 << 20;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let prompt = read_text(args.prompt.as_deref(), args.file.as_deref())?;
    let mut loaded = args.engine.load()?;
    let prompt = encode(args, &loaded, &prompt)?;
    loaded.check_fits(prompt.len())?;
    let heads: usize = loaded.engine.kv_shape().layers.iter().map(|layer| layer.kv_heads).sum();
    let rows = heads.saturating_mul(prompt.len() + args.max_tokens).saturating_mul(args.max_tokens + 1);
    if rows > MOST_ROWS {
        bail!(
            "{} tokens of prompt at {} moments are {} MiB of page: use a shorter prompt or a smaller --max-tokens",
            prompt.len(),
            args.max_tokens + 1,
            rows >> 20
        );
    }
    let html = page(&record(args, &mut loaded, prompt)?);
    match args.serve {
        Some(address) => serve(address, &html),
        None => {
            write(&args.out, html.as_bytes())?;
            eprintln!("{}", shown(&args.out));
            Ok(())
        }
    }
}

/// Reads and continues the prompt under the probe.
fn record(args: &Args, loaded: &mut Loaded, prompt: Vec<u32>) -> anyhow::Result<Record> {
    let shared = Arc::new(Mutex::new(Record::default()));
    let probe = Box::new(Probe::new(Arc::clone(&shared)));
    let mut session = loaded.engine.session_watched(&loaded.pipeline, probe)?;
    let prompt_tokens = prompt.len();
    let request = GenerateRequest { prompt, max_tokens: Some(args.max_tokens), ..GenerateRequest::default() };
    let interrupt = Interrupt::install()?;
    interrupt.begin();
    let generation = loaded.engine.generate(&mut session, &request, &mut |_| {
        if interrupt.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    interrupt.end();
    drop(session);
    if generation.stop == StopReason::Cancelled {
        return Err(Interrupted.into());
    }
    let mut record = std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner));
    let tokenizer = loaded.engine.tokenizer()?;
    let seen = record.moments.last().map_or(0, |moment| moment.tokens);
    let ids = generation.prompt_ids.iter().chain(&generation.completion_ids).take(seen);
    record.tokens = ids.map(|&id| tokenizer.token_text(id)).collect();
    record.prompt_tokens = prompt_tokens;
    record.model = loaded.name();
    record.pipeline = loaded.pipeline.to_string();
    let shape = loaded.engine.kv_shape();
    record.kv_heads = shape.layers.iter().map(|layer| layer.kv_heads).collect();
    record.bf16_bytes_per_token = shape.bf16_bytes(1);
    Ok(record)
}

fn encode(args: &Args, loaded: &Loaded, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let tokenizer = loaded.engine.tokenizer()?;
    match loaded.chat_template()? {
        Some(template) if !args.raw => {
            let mut conversation = Conversation::new(None);
            conversation.ask(prompt);
            encode_chat(template, tokenizer, &conversation)
        }
        _ => Ok(tokenizer.encode(prompt, EncodeOptions { add_special: true, parse_special: false })?),
    }
}

/// Answers every request for `/` with the page, until Ctrl-C.
fn serve(address: SocketAddr, html: &str) -> anyhow::Result<()> {
    let server = tiny_http::Server::http(address).map_err(|error| {
        anyhow::anyhow!("cannot listen at {address}: {error}; choose another with --serve ADDRESS")
    })?;
    eprintln!("http://{}/ (Ctrl-C ends it)", server.server_addr());
    for request in server.incoming_requests() {
        let found = request.url() == "/" || request.url() == "/index.html";
        let (text, status) = if found { (html, 200) } else { ("not found", 404) };
        let kind = if found { "text/html; charset=utf-8" } else { "text/plain" };
        let header = tiny_http::Header::from_bytes("Content-Type", kind);
        let response = tiny_http::Response::from_string(text).with_status_code(status);
        let response = match header {
            Ok(header) => response.with_header(header),
            Err(()) => response,
        };
        match request.respond(response) {
            // Whoever asked has gone.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            answered => answered?,
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
