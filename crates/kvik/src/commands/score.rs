//! `kvik score`: how likely a model finds a text. Every claim about quality stands on its numbers.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::bail;
use kvik_engine::{Phase, Score};
use kvik_model::tokenizer::EncodeOptions;
use serde::Serialize;

use super::engine_args::{EngineArgs, Loaded};
use super::input::{parse_ids, read_file};
use super::numbers::whole;
use super::progress::progress_bar;

/// Say how likely a model finds a text, token by token
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text; `-` reads standard input
    file: PathBuf,
    /// FILE holds token ids, as a JSON array or with spaces between them
    #[arg(long)]
    ids: bool,
    /// Report the N most likely tokens at each place, too
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = whole::<usize>, allow_negative_numbers = true)]
    top: usize,
    /// Compute the tokens as those of a prompt or, one arithmetic more exact where the processor has a fast one, as generated ones
    #[arg(long, value_enum, default_value_t = PhaseName::Prefill)]
    phase: PhaseName,
    /// One JSON object: token_ids, logprobs (natural logarithm, null for the first), perplexity, and top if asked for
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik score article.txt
  kvik score article.txt --json --top 5 --model gemma3-270m
  kvik tokenize --file article.txt --ids-only | kvik score - --ids";

/// [`Phase`] on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PhaseName {
    Prefill,
    Decode,
}

impl From<PhaseName> for Phase {
    fn from(name: PhaseName) -> Self {
        match name {
            PhaseName::Prefill => Self::Prefill,
            PhaseName::Decode => Self::Decode,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    token_ids: &'a [u32],
    logprobs: &'a [Option<f32>],
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    top: Option<&'a Vec<Vec<(u32, f32)>>>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let text = read_file(&args.file)?;
    let given_ids = args.ids.then(|| parse_ids(&text)).transpose()?;
    let mut loaded = args.engine.load()?;
    // The text is data: special tokens that are written out in it are text like any other.
    let options = EncodeOptions { add_special: true, parse_special: false };
    let ids = match given_ids {
        Some(ids) => ids,
        None => loaded.engine.tokenizer()?.encode(&text, options)?,
    };
    let (holds, trained) = (loaded.engine.context_tokens(), loaded.engine.model_config().trained_context);
    if ids.len() > holds {
        let way_out = if holds < trained { " or raise --ctx" } else { "" };
        bail!(
            "the text has {} tokens, the context holds {holds}: score it in parts{way_out} (the model was trained for \
             {trained})",
            ids.len()
        );
    }

    let progress = progress_bar("{pos} of {len} tokens  {per_sec}  {eta}");
    progress.set_length(ids.len() as u64);
    let score =
        loaded.engine.score(&loaded.pipeline, &ids, args.top, args.phase.into(), &mut |done, _| {
            progress.set_position(done as u64)
        })?;
    progress.finish_and_clear();

    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        let report = Report {
            token_ids: &score.token_ids,
            logprobs: &score.logprobs,
            perplexity: score.perplexity,
            top: (args.top > 0).then_some(&score.top),
        };
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        summarise(&mut out, &score, &loaded)?;
    }
    Ok(out.flush()?)
}

/// The whole text in three numbers, and the tokens that the model expected least.
fn summarise(out: &mut impl Write, score: &Score, loaded: &Loaded) -> io::Result<()> {
    const SHOWN: usize = 5;
    // A model without a tokenizer can be scored by ids; its tokens are then shown as such.
    let tokenizer = loaded.engine.tokenizer().ok();
    let shown = |id: u32| tokenizer.map_or_else(|| id.to_string(), |t| format!("{:?}", t.token_text(id)));
    let known: Vec<(usize, f32)> =
        score.logprobs.iter().enumerate().filter_map(|(i, logprob)| Some((i, (*logprob)?))).collect();
    let mean = known.iter().map(|(_, logprob)| f64::from(*logprob)).sum::<f64>() / known.len().max(1) as f64;
    writeln!(out, "tokens        {}", score.token_ids.len())?;
    writeln!(out, "perplexity    {:.4}", score.perplexity)?;
    writeln!(out, "mean logprob  {mean:.4}")?;
    let mut rarest = known;
    rarest.sort_by(|a, b| a.1.total_cmp(&b.1));
    writeln!(out, "least expected")?;
    for (position, logprob) in rarest.into_iter().take(SHOWN) {
        let id = score.token_ids[position];
        writeln!(out, "  {logprob:>9.3}  at {position}: {}", shown(id))?;
        for (id, logprob) in &score.top[position] {
            writeln!(out, "    {logprob:>9.3}  {}", shown(*id))?;
        }
    }
    Ok(())
}
