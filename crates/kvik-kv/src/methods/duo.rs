//! DuoAttention: heads that look back far keep everything, the others sinks and a recent window.
//!
//! Xiao, Tang et al., "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads", ICLR 2025
//! (arXiv 2410.10819).
//!
//! Every KV head of a model gets a gate between 0 and 1, once: how much of its attention over the whole sequence the model needs
//! to give back pass keys hidden in a text. Gates are found by gradient descent on frozen weights, with a penalty that pushes them
//! to 0 (`kvik calibrate duo`). The `full` share of heads with the highest gates keeps every token; the others keep the first
//! `sink` and the last `recent` ones, after each chunk of a prompt and after every decoded token. Keys keep their rotation.
//!
//! Nothing depends on the prompt, so the cache may serve as a shared prefix, and what the full heads hold can still be found by any
//! later question. Within a chunk of a prompt the streaming heads see that chunk, however long it is: a prompt of one chunk is read
//! exactly. Memory falls while the prompt is read already, by as much as `--prefill-chunk` allows.
//!
//! Gates of SmolLM2 135M come with Kvik; they belong to one model and one quantisation of it. Training sees the `sink` and `recent` that the file's header names; the
//! defaults here are those of the authors' deployment. The share of full heads is rounded to whole heads, which may be one more or
//! less than the authors' quantile gives, and of two equal gates the earlier head's counts as higher, where the authors draw. Gates
//! may leave a layer without full heads, or without others. Where a model has one KV head, or few layers that see the whole sequence
//! (Gemma 3), this chooses layers rather than heads.
//!
//! A method that chooses tokens acts after it, on what both kinds of heads have kept.

use std::path::Path;

use crate::{
    Arguments, CacheError, Calibration, CalibrationError, Direction, KvShape, Method, MethodInfo, OpenCache,
    Parameter, ParameterKind, draw::uniform, sink_window::SinkWindow,
};

/// The calibrations that come with Kvik, from `kvik calibrate duo`: SmolLM2 135M Instruct (Q4_1).
const SHIPPED: &[&[u8]] = &[include_bytes!("../../../../data/calibration/duo-smollm2-135m.safetensors")];

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "duo",
    direction: Direction::Heads,
    summary: "retrieval heads keep every token, streaming heads sinks and recent ones",
    paper: "Xiao, Tang et al., ICLR 2025, arXiv 2410.10819",
    parameters: &[
        Parameter {
            name: "gates",
            kind: ParameterKind::Text,
            default: "auto",
            about: "the file with the model's gates; auto looks among those that come with Kvik",
        },
        Parameter {
            name: "full",
            kind: ParameterKind::Number { min: 0.0, max: 1.0 },
            default: "0.5",
            about: "share of KV heads that keep every token (the paper's choice with grouped queries; 0.25 without)",
        },
        Parameter {
            name: "sink",
            kind: ParameterKind::Count { min: 0, max: usize::MAX },
            default: "64",
            about: "first tokens that streaming heads keep (the authors' deployment)",
        },
        Parameter {
            name: "recent",
            kind: ParameterKind::Count { min: 1, max: usize::MAX },
            default: "256",
            about: "last tokens that streaming heads keep (the authors' deployment)",
        },
        Parameter {
            name: "choose",
            kind: ParameterKind::Choice(&["highest", "lowest", "random"]),
            default: "highest",
            about: "which gates make full heads; the others are controls",
        },
    ],
    query_free: true,
    calibration: Some("gates for each KV head, found by `kvik calibrate duo`"),
    source: include_str!("duo.rs"),
    check: |_| None,
    build: |arguments, shape| Ok(Box::new(Duo::new(arguments, shape)?)),
};

#[derive(Clone)]
struct Duo {
    /// Layers and KV heads that keep sinks and recent tokens only.
    streaming: Vec<(usize, usize)>,
    window: SinkWindow,
}

impl Duo {
    fn new(arguments: &Arguments, shape: &KvShape) -> Result<Self, String> {
        let kv_heads = shape.layers.iter().map(|layer| layer.kv_heads).max().unwrap_or(0);
        let gates = match arguments.text("gates") {
            "auto" => shipped(shape)?,
            path => gates(&Calibration::read(Path::new(path)).map_err(said)?, shape)?,
        };
        let heads: Vec<(usize, usize)> = shape
            .full_layers()
            .flat_map(|layer| (0..shape.layers[layer].kv_heads).map(move |head| (layer, head)))
            .collect();
        let gates: Vec<f32> = heads.iter().map(|&(layer, head)| gates[layer * kv_heads + head]).collect();
        let full = full_heads(&gates, arguments.number("full"), arguments.text("choose"));
        let streaming = heads.into_iter().zip(full).filter(|(_, full)| !full).map(|(head, _)| head).collect();
        let window = SinkWindow { sinks: arguments.count("sink"), recent: arguments.count("recent") };
        Ok(Self { streaming, window })
    }
}

fn said(error: CalibrationError) -> String {
    error.to_string()
}

/// The gates of `shape`'s model that come with Kvik.
fn shipped(shape: &KvShape) -> Result<Vec<f32>, String> {
    for bytes in SHIPPED {
        let calibration = Calibration::parse("the calibration in this program".to_owned(), bytes.to_vec());
        let calibration = calibration.map_err(said)?;
        if calibration.check(INFO.name, &shape.fingerprint).is_ok() {
            return gates(&calibration, shape);
        }
    }
    Err("no gates for this model come with Kvik: make them with `kvik calibrate duo -o FILE`, then write duo(gates=FILE)".to_owned())
}

/// The gates in `calibration`, `[layers, kv_heads]`; layers with fewer heads than others leave the rest unread.
fn gates(calibration: &Calibration, shape: &KvShape) -> Result<Vec<f32>, String> {
    calibration.check(INFO.name, &shape.fingerprint).map_err(said)?;
    let kv_heads = shape.layers.iter().map(|layer| layer.kv_heads).max().unwrap_or(0);
    let gates = calibration.numbers("gates", &[shape.layers.len(), kv_heads]).map_err(said)?;
    match gates.iter().all(|gate| gate.is_finite()) {
        true => Ok(gates),
        false => Err("some gates are no numbers: `kvik calibrate duo` makes new ones".to_owned()),
    }
}

/// Which heads keep everything: `share` of them, rounded.
fn full_heads(gates: &[f32], share: f64, choose: &str) -> Vec<bool> {
    let mut order: Vec<usize> = (0..gates.len()).collect();
    match choose {
        "random" => {
            let draw = |head: usize| uniform(0, &[head as u64]);
            order.sort_by(|&a, &b| draw(a).total_cmp(&draw(b)));
        }
        "lowest" => order.sort_by(|&a, &b| gates[a].total_cmp(&gates[b]).then(b.cmp(&a))),
        _ => order.sort_by(|&a, &b| gates[b].total_cmp(&gates[a]).then(a.cmp(&b))),
    }
    let mut full = vec![false; gates.len()];
    let count = (share * gates.len() as f64).round() as usize;
    order[..count].iter().for_each(|&head| full[head] = true);
    full
}

impl Method for Duo {
    fn after_chunk(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.streaming.iter().try_for_each(|&(layer, kv_head)| self.window.cut(cache, layer, kv_head))
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.streaming.iter().try_for_each(|&(layer, kv_head)| self.window.slide(cache, layer, kv_head))
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_gates_make_full_heads_and_ties_go_to_the_earlier() {
        let gates = [0.5, 0.1, 0.9, 0.5];
        assert_eq!(full_heads(&gates, 0.5, "highest"), [true, false, true, false]);
        assert_eq!(full_heads(&gates, 0.5, "lowest"), [false, true, false, true]);
        assert_eq!(full_heads(&gates, 0.0, "highest"), [false; 4]);
        assert_eq!(full_heads(&gates, 1.0, "lowest"), [true; 4]);
        let random = full_heads(&[0.0; 90], 0.5, "random");
        assert_eq!(random.iter().filter(|&&full| full).count(), 45);
        assert_ne!(random, full_heads(&[0.0; 90], 0.5, "highest"));
    }
}
