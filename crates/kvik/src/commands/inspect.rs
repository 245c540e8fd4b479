//! `kvik inspect`: what is in a model's files, whether or not Kvik can run it.
//!
//! Nothing but headers is read, and nothing is required: what a file does not say is left out. The same facts go to
//! people as lines and to programs as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, Write};

use indicatif::{HumanBytes, HumanCount};
use kvik_model::metadata::{Array, Value};
use kvik_model::tensor::TensorInfo;
use kvik_model::{Checkpoint, Metadata};
use serde_json::{Map, json};

/// Show what is in a model's files
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A path, a known name, or owner/name[:file]
    model: String,
    /// List every tensor, too
    #[arg(long)]
    tensors: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  kvik inspect smollm2
  kvik inspect path/to/model.gguf --tensors
  kvik inspect owner/name --json";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = kvik::pull::ensure(&args.model)?;
    let checkpoint = Checkpoint::open(&path)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &as_json(&checkpoint, args.tensors))
            .map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write_text(&mut out, &checkpoint, args.tensors)?;
    }
    out.flush()?;
    Ok(())
}

/// The numbers that describe a network, as far as its file tells them. GGUF names them after the architecture,
/// `config.json` after the library's habits.
struct Shape {
    layers: Option<u64>,
    width: Option<u64>,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    head_dim: Option<u64>,
    feed_forward: Option<u64>,
    sliding_window: Option<u64>,
    context_tokens: Option<u64>,
    vocabulary: Option<u64>,
}

impl Shape {
    fn read(metadata: &Metadata) -> Shape {
        let architecture: &str = metadata.find("general.architecture").ok().flatten().unwrap_or_default();
        let find = |gguf: &str, config: &[&str]| {
            let keys = std::iter::once(format!("{architecture}.{gguf}"))
                .chain(config.iter().map(|key| key.to_string()));
            keys.into_iter().find_map(|key| metadata.find::<u64>(&key).ok().flatten())
        };
        let heads = find("attention.head_count", &["num_attention_heads"]);
        let width = find("embedding_length", &["hidden_size"]);
        let tokens: Option<Array<'_>> = metadata.find("tokenizer.ggml.tokens").ok().flatten();
        Shape {
            layers: find("block_count", &["num_hidden_layers"]),
            width,
            heads,
            kv_heads: find("attention.head_count_kv", &["num_key_value_heads"]).or(heads),
            head_dim: find("attention.key_length", &["head_dim"]).or_else(|| width?.checked_div(heads?)),
            feed_forward: find("feed_forward_length", &["intermediate_size", "ffn_dim"]),
            sliding_window: find("attention.sliding_window", &["sliding_window"]),
            context_tokens: find("context_length", &["max_position_embeddings"]),
            vocabulary: find("vocab_size", &["vocab_size"]).or(tokens.map(|tokens| tokens.len() as u64)),
        }
    }

    /// Keys and values of one token in all layers, in bf16.
    fn kv_bytes_per_token(&self) -> Option<u64> {
        [self.layers?, self.kv_heads?, self.head_dim?]
            .iter()
            .try_fold(2 * 2, |bytes: u64, n| bytes.checked_mul(*n))
    }
}

/// Tensors of one format.
#[derive(Default)]
struct Group {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

fn parameters(tensor: &TensorInfo) -> u64 {
    tensor.shape.iter().fold(1, |product, &size| product.saturating_mul(size as u64))
}

fn groups(checkpoint: &Checkpoint) -> BTreeMap<String, Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let group = groups.entry(tensor.ty.to_string()).or_default();
        group.tensors += 1;
        group.parameters += parameters(tensor);
        group.bytes += tensor.bytes().unwrap_or(0) as u64;
    }
    groups
}

fn architecture(metadata: &Metadata) -> Option<String> {
    let text = |key| metadata.find::<&str>(key).ok().flatten().map(str::to_owned);
    let class = || match metadata.find::<Array<'_>>("architectures").ok().flatten()?.iter().next() {
        Some(Value::String(name)) => Some(name.to_owned()),
        _ => None,
    };
    text("general.architecture").or_else(|| text("model_type")).or_else(class)
}

/// The kind of tokenizer: the file's own words for GGUF, the file that holds it for a folder.
fn tokenizer(checkpoint: &Checkpoint) -> Option<String> {
    let text = |key| checkpoint.metadata().find::<&str>(key).ok().flatten();
    if let Some(folder) = checkpoint.folder() {
        return folder.join("tokenizer.json").exists().then(|| "tokenizer.json".to_owned());
    }
    let kind = match text("tokenizer.ggml.model")? {
        "gpt2" => "byte-level BPE".to_owned(),
        "llama" => "SentencePiece".to_owned(),
        other => other.escape_debug().to_string(),
    };
    let words = text("tokenizer.ggml.pre").map(|pre| format!(", words as {}", pre.escape_debug()));
    Some(kind + &words.unwrap_or_default())
}

fn has_chat_template(checkpoint: &Checkpoint) -> bool {
    let Some(folder) = checkpoint.folder() else {
        return checkpoint.metadata().contains("tokenizer.chat_template");
    };
    let configuration = std::fs::read(folder.join("tokenizer_config.json")).unwrap_or_default();
    let configuration: serde_json::Value = serde_json::from_slice(&configuration).unwrap_or_default();
    folder.join("chat_template.jinja").exists() || configuration.get("chat_template").is_some()
}

fn write_text(out: &mut impl Write, checkpoint: &Checkpoint, tensors: bool) -> io::Result<()> {
    let metadata = checkpoint.metadata();
    let shape = Shape::read(metadata);
    let groups = groups(checkpoint);
    let total = |count: fn(&Group) -> u64| groups.values().map(count).sum::<u64>();
    let mut line = |name: &str, text: String| writeln!(out, "{name:14} {text}");

    line("file", checkpoint.path().display().to_string())?;
    line("format", format!("{}, {}", checkpoint.format(), HumanBytes(checkpoint.file_bytes())))?;
    line("architecture", architecture(metadata).unwrap_or("not said".into()).escape_debug().to_string())?;
    let counted = [
        (shape.layers, "layers"),
        (shape.width, "wide"),
        (shape.heads, "heads"),
        (shape.kv_heads, "KV heads"),
        (shape.head_dim, "dimensions a head"),
        (shape.feed_forward, "wide feed-forward"),
    ];
    let counted = counted.iter().filter_map(|(count, what)| count.map(|count| format!("{count} {what}")));
    let counted: Vec<String> = counted.collect();
    if !counted.is_empty() {
        line("network", counted.join(", "))?;
    }
    if let Some(tokens) = shape.context_tokens {
        let window = shape.sliding_window.map(|window| format!(", sliding window of {window}"));
        line("context", format!("{tokens} tokens{}", window.unwrap_or_default()))?;
    }
    let vocabulary = shape.vocabulary.map(|tokens| format!(", {tokens} tokens")).unwrap_or_default();
    line("tokenizer", tokenizer(checkpoint).map_or("none".into(), |kind| kind + &vocabulary))?;
    line("chat template", if has_chat_template(checkpoint) { "yes" } else { "no" }.into())?;
    let (tensor_count, parameter_count) = (total(|group| group.tensors), total(|group| group.parameters));
    line("parameters", format!("{} in {tensor_count} tensors", HumanCount(parameter_count)))?;
    if let Some(bytes) = shape.kv_bytes_per_token() {
        let whole = shape.context_tokens.and_then(|tokens| bytes.checked_mul(tokens));
        let whole = whole.map(|bytes| format!(", {} for the whole context", HumanBytes(bytes)));
        line("KV cache", format!("{} a token in bf16{}", HumanBytes(bytes), whole.unwrap_or_default()))?;
    }

    writeln!(out, "\nTensors by type")?;
    for (ty, group) in &groups {
        let (count, parameters) = (group.tensors, HumanCount(group.parameters).to_string());
        writeln!(
            out,
            "  {ty:8} {count:>5}  {parameters:>15} parameters  {:>11}",
            HumanBytes(group.bytes).to_string()
        )?;
    }
    writeln!(out, "\nMetadata")?;
    for (key, value) in metadata.iter() {
        writeln!(out, "  {} = {value}", key.escape_debug())?;
    }
    if tensors {
        writeln!(out, "\nTensors")?;
        for tensor in checkpoint.tensors() {
            let shape = tensor.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            writeln!(out, "  {:8} {shape:>16}  {}", tensor.ty.to_string(), tensor.name.escape_debug())?;
        }
    }
    Ok(())
}

fn as_json(checkpoint: &Checkpoint, tensors: bool) -> serde_json::Value {
    let metadata = checkpoint.metadata();
    let shape = Shape::read(metadata);
    let groups = groups(checkpoint);
    let by_type: Map<String, serde_json::Value> = groups
        .iter()
        .map(|(ty, group)| {
            let counts =
                json!({"tensors": group.tensors, "parameters": group.parameters, "bytes": group.bytes});
            (ty.clone(), counts)
        })
        .collect();
    let settings: Map<String, serde_json::Value> =
        metadata.iter().map(|(key, value)| (key.into_owned(), value_as_json(value))).collect();
    let mut object = json!({
        "path": checkpoint.path(),
        "format": checkpoint.format().to_string(),
        "file_bytes": checkpoint.file_bytes(),
        "architecture": architecture(metadata),
        "layers": shape.layers,
        "width": shape.width,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "feed_forward": shape.feed_forward,
        "sliding_window": shape.sliding_window,
        "context_tokens": shape.context_tokens,
        "vocabulary": shape.vocabulary,
        "tokenizer": tokenizer(checkpoint),
        "chat_template": has_chat_template(checkpoint),
        "parameters": groups.values().map(|group| group.parameters).sum::<u64>(),
        "kv_bytes_per_token_bf16": shape.kv_bytes_per_token(),
        "tensors_by_type": by_type,
        "metadata": settings,
    });
    if tensors {
        let tensor = |tensor: &TensorInfo| json!({"name": tensor.name, "type": tensor.ty.to_string(), "shape": tensor.shape, "bytes": tensor.bytes()});
        object["tensors"] = checkpoint.tensors().map(tensor).collect();
    }
    object
}

/// A setting as JSON; of a long list its length and its beginning.
fn value_as_json(value: Value<'_>) -> serde_json::Value {
    const WHOLE_LISTS_UP_TO: usize = 16;
    match value {
        Value::Bool(value) => json!(value),
        Value::Unsigned(value) => json!(value),
        Value::Signed(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::String(value) => json!(value),
        Value::Array(list) if list.len() <= WHOLE_LISTS_UP_TO => list.iter().map(value_as_json).collect(),
        Value::Array(list) => {
            let beginning: Vec<_> = list.iter().take(4).map(value_as_json).collect();
            json!({"length": list.len(), "beginning": beginning})
        }
        Value::Other => serde_json::Value::Null,
    }
}
