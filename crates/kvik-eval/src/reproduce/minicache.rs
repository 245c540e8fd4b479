//! MiniCache: how alike neighbouring layers are, and what it costs to let them share a direction.

use std::sync::{Arc, Mutex, PoisonError};

use kvik_engine::Session;
use kvik_kv::{CacheError, Method, OpenCache, PlaneKind, SharedRow};

use super::{Experiment, Lab, Results};
use crate::{
    EvalError,
    statistics::{Weighted, bootstrap, paired_difference},
};

/// Tokens that follow each prompt.
const FOLLOW: usize = 128;

pub(super) struct MiniCache;

impl Experiment for MiniCache {
    fn name(&self) -> &'static str {
        "minicache"
    }

    fn paper(&self) -> &'static str {
        "Liu et al., NeurIPS 2024, arXiv 2405.14366"
    }

    fn claim(&self) -> &'static str {
        "neighbouring layers of the deeper half can share the direction of keys and values; with 4 bits a cache shrinks fivefold, \
         near lossless"
    }

    fn setting(&self) -> &'static str {
        "a 135M model of 30 layers instead of 7B and more, so layers are paired from later on as well; the loss of 128 tokens behind \
         prompts of prose; baselines share the mean of both layers' rows, or those of the lower layer"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.likeness(lab, &mut results)?;
        self.loss(lab, &mut results)?;
        self.bytes_and_speed(lab, &mut results)?;
        Ok(results)
    }
}

impl MiniCache {
    /// The observation that the method stands on: the cosine between neighbouring layers, by depth.
    fn likeness(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let cosines = Arc::new(Mutex::new(Vec::new()));
        let prompt = lab.prose(0, lab.pick(256, 2048))?;
        lab.read_with(Box::new(Compare(Arc::clone(&cosines))), &prompt)?;
        let cosines = std::mem::take(&mut *cosines.lock().unwrap_or_else(PoisonError::into_inner));
        for (layer, [keys, values]) in cosines.into_iter().enumerate().step_by(2) {
            let what = |plane: &str| format!("cosine of {plane} at layers {layer} and {}", layer + 1);
            results.measured(what("keys"), "full", keys, "");
            results.measured(what("values"), "full", values, "");
        }
        Ok(())
    }

    fn loss(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let layers = lab.engine().kv_shape().layers.len();
        let starts: Vec<usize> =
            lab.pick(vec![layers - 2], vec![layers / 2, layers / 2 + 5, layers - 6, layers - 4, layers - 2]);
        let (prompt_tokens, texts) = (lab.pick(512, 1024), lab.pick(2, 12));
        let texts: Vec<Vec<u32>> = (0..texts)
            .map(|text| lab.prose(text * (prompt_tokens + FOLLOW), prompt_tokens + FOLLOW))
            .collect::<Result<_, _>>()?;
        let full = losses(lab, "full", &texts, |lab, prompt| lab.read("full", prompt))?;
        let added = |losses: &[Weighted]| paired_difference(losses, &full, 1, |x| x);
        let mut cheapest_start = None;
        let (mut over_mean, mut over_copy) = (Vec::new(), Vec::new());
        for &start in &starts {
            let ways = [
                format!("minicache(start={start})"),
                format!("minicache(start={start},t=0.5)"),
                format!("minicache(start={start},retain=0)"),
                format!("minicache(start={start})+kivi(bits=4)"),
            ];
            let mut of = Vec::new();
            for kv in &ways {
                let losses = losses(lab, kv, &texts, |lab, prompt| lab.read(kv, prompt))?;
                if let Some(added) = added(&losses) {
                    results.estimated("loss added", kv, added, "nats");
                }
                of.push(losses);
            }
            for (blend, name, worse) in [
                (Blend::Mean, "mean of both", &mut over_mean),
                (Blend::Lower, "the lower layer's rows", &mut over_copy),
            ] {
                let name = format!("{name} from layer {start} on");
                let losses = losses(lab, &name, &texts, |lab, prompt| {
                    lab.read_with(Box::new(Blended { start, blend }), prompt)
                })?;
                if let Some(added) = added(&losses) {
                    results.estimated("loss added", name, added, "nats");
                }
                worse.extend(paired_difference(&losses, &of[0], 1, |x| x).map(|difference| difference.low));
            }
            let mean = |of: &[Weighted]| bootstrap(of, 1, |x| x).map_or(f64::NAN, |estimate| estimate.value);
            if cheapest_start.is_none() && mean(&of[0]) / mean(&full) < 1.02 {
                cheapest_start = Some(start);
            }
        }
        let least = |of: &[f64]| of.iter().copied().fold(f64::INFINITY, f64::min);
        results.at_least(
            "loss of the mean above MiniCache's, low end, at every start",
            least(&over_mean),
            0.0,
            "nats",
        );
        results.at_least(
            "loss of the lower layer's above MiniCache's, low end, at every start",
            least(&over_copy),
            0.0,
            "nats",
        );
        let layers_that_fit = cheapest_start.map_or(0, |start| layers - start);
        results.at_least(
            "layers in pairs for less than 2 % more loss",
            layers_that_fit as f64,
            lab.pick(0.0, layers as f64 / 2.0),
            "",
        );
        Ok(())
    }

    fn bytes_and_speed(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let depth = lab.pick(1024, 7900);
        let prompt = lab.prose(0, depth)?;
        let mut full = f64::NAN;
        for kv in ["full", "minicache", "minicache+kivi(bits=4)"] {
            lab.say(&format!("decoding behind {depth} tokens: {kv}"))?;
            let mut session = lab.read(kv, &prompt)?;
            let bytes = lab.bf16_bytes(depth) / lab.kv_bytes(&session);
            results.measured(format!("bf16's bytes over the cache's after {depth} tokens"), kv, bytes, "");
            let time = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("decoding behind {depth} tokens"), kv, time, "ms");
            match kv {
                "full" => full = time,
                "minicache" => {
                    results.at_least("a token decoded in bf16 over a merged one", full / time, 1.0, "")
                }
                _ => results.at_least("compression with 4 bits", bytes, lab.pick(2.0, 4.0), ""),
            }
        }
        Ok(())
    }
}

/// The summed loss of what follows each text's prompt.
fn losses(
    lab: &mut Lab<'_>,
    name: &str,
    texts: &[Vec<u32>],
    read: impl Fn(&mut Lab<'_>, &[u32]) -> Result<Session, EvalError>,
) -> Result<Vec<Weighted>, EvalError> {
    let one = |(index, text): (usize, &Vec<u32>)| {
        lab.say(&format!("{name}: text {} of {}", index + 1, texts.len()))?;
        let (prompt, rest) = text.split_at(text.len() - FOLLOW);
        let mut session = read(lab, prompt)?;
        let mean = lab.follow(&mut session, rest)?;
        Ok(Weighted { sum: mean, weight: 1.0 })
    };
    texts.iter().enumerate().map(one).collect()
}

/// Takes the mean cosine between the rows of each layer and those of the next, keys and values apart.
struct Compare(Arc<Mutex<Vec<[f64; 2]>>>);

impl Method for Compare {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let mut cosines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for lower in 0..cache.shape().layers.len() - 1 {
            cosines.push([PlaneKind::Keys, PlaneKind::Values].map(|plane| {
                let dim = cache.layer(lower).tile().plane(plane).0;
                let mut all = Vec::new();
                for kv_head in 0..cache.layer(lower).kv_heads {
                    let rows = 0..cache.rows(lower, kv_head);
                    let a = cache.plane(lower, kv_head, plane, rows.clone());
                    let b = cache.plane(lower + 1, kv_head, plane, rows);
                    all.extend(
                        a.chunks(dim)
                            .zip(b.chunks(dim))
                            .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()),
                    );
                }
                all.iter().sum::<f64>() / all.len() as f64
            }));
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

/// What both layers of a pair read in a baseline.
#[derive(Clone, Copy, PartialEq)]
enum Blend {
    Mean,
    Lower,
}

/// Lets the layers of a pair share whole rows, lengths included.
#[derive(Clone, Copy)]
struct Blended {
    start: usize,
    blend: Blend,
}

impl Blended {
    /// The rows of both layers blended, as unit vectors and lengths.
    fn plane(
        self,
        cache: &OpenCache<'_>,
        lower: usize,
        kv_head: usize,
        plane: PlaneKind,
    ) -> (Vec<f32>, Vec<f32>) {
        let dim = cache.layer(lower).tile().plane(plane).0;
        let rows = 0..cache.rows(lower, kv_head);
        let mut blend = cache.plane(lower, kv_head, plane, rows.clone());
        if self.blend == Blend::Mean {
            let upper = cache.plane(lower + 1, kv_head, plane, rows);
            blend.iter_mut().zip(&upper).for_each(|(a, b)| *a = 0.5 * (*a + b));
        }
        let lengths: Vec<f32> = blend.chunks(dim).map(|row| dot(row, row).sqrt().max(1e-20) as f32).collect();
        for (row, length) in blend.chunks_mut(dim).zip(&lengths) {
            row.iter_mut().for_each(|x| *x /= length);
        }
        (blend, lengths)
    }
}

impl Method for Blended {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let layers = cache.shape().layers.len();
        for lower in (self.start..layers - 1).step_by(2) {
            for kv_head in 0..cache.layer(lower).kv_heads {
                let (keys, key_lengths) = self.plane(cache, lower, kv_head, PlaneKind::Keys);
                let (values, value_lengths) = self.plane(cache, lower, kv_head, PlaneKind::Values);
                let rows = key_lengths.len();
                let (key_dim, value_dim) = (keys.len() / rows, values.len() / rows);
                let shared: Vec<SharedRow<'_>> = (0..rows)
                    .map(|row| SharedRow {
                        rows: [row, row],
                        key: &keys[row * key_dim..][..key_dim],
                        value: &values[row * value_dim..][..value_dim],
                        key_lengths: [key_lengths[row]; 2],
                        value_lengths: [value_lengths[row]; 2],
                    })
                    .collect();
                cache.share_rows([lower, lower + 1], kv_head, &shared)?;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(*self)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
