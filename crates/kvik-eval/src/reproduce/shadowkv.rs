//! ShadowKV: how many dimensions keys need before and after rotation, what a text loses, pass keys, memory and speed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use kvik_engine::Session;
use kvik_kv::{
    CacheError, LayerShape, Method, OpenCache, Pipeline,
    methods::shadowkv::{ShadowKv, Traffic},
    principal::energies,
};

use super::{Experiment, Lab, Results, lab::row};
use crate::{EvalError, run::QuestionPlace, statistics::percentile, tasks::Plan};

/// Chunks that stay exact at the end of a prompt, by default.
const LOCAL: usize = 4;
/// Tokens of a chunk, by default.
const CHUNK: usize = 8;
/// Part of the keys' dims that the rank is where the loss is measured.
const RANK_SHARE: f64 = 0.3;
/// Part of the keys' energy that directions are counted for.
const ENERGY: f64 = 0.99;
/// Tokens that one session decodes before it is another's turn.
const TURN: usize = 8;

pub(super) struct ShadowKvExperiment;

impl Experiment for ShadowKvExperiment {
    fn name(&self) -> &'static str {
        "shadowkv"
    }

    fn paper(&self) -> &'static str {
        "Sun et al., ICML 2025, arXiv 2410.21465"
    }

    fn claim(&self) -> &'static str {
        "keys have a low rank before rotation, and with them, with values in slow memory and with the chunks that a query asks for, \
         decoding takes a sixth of the fast memory and is as accurate, several times as fast as with an offloaded cache"
    }

    fn setting(&self) -> &'static str {
        "a 135M model on a processor, whose slow memory is a file that the system keeps in its page cache; a sixteenth to an eighth of up \
         to 7,900 tokens instead of 1.6 % of 128 thousand; 192 dims of keys in all instead of 1,024, of which 30 % are kept where the loss \
         is measured and the paper's share of at least 32 where memory is"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.spectrum(lab, &mut results)?;
        self.continuation(lab, &mut results)?;
        self.recall(lab, &mut results)?;
        self.memory_and_speed(lab, &mut results)?;
        Ok(results)
    }
}

impl ShadowKvExperiment {
    fn spectrum(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        lab.say("the spectrum of keys")?;
        let prompt = lab.prose(0, lab.pick(1000, 4000))?;
        let ranks = Arc::new(Mutex::new(Vec::new()));
        lab.read_with(Box::new(Spectrum(Arc::clone(&ranks))), &prompt)?;
        let ranks = std::mem::take(&mut *ranks.lock().unwrap_or_else(PoisonError::into_inner));
        let mean =
            |of: fn(&[usize; 2]) -> usize| ranks.iter().map(of).sum::<usize>() as f64 / ranks.len() as f64;
        let [before, after] = [mean(|ranks| ranks[0]), mean(|ranks| ranks[1])];
        let what = "directions of a layer's keys with 99 % of the energy";
        results.measured(what, "before rotation", before, "");
        results.measured(what, "after rotation", after, "");
        results.at_most("directions before rotation over after", before / after, 0.8, "");
        Ok(())
    }

    /// The loss on text that follows a prompt, beside sinks and a window of as many tokens.
    fn continuation(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (tokens, follow, texts) = (lab.pick(1500, 4000), lab.pick(64, 128), lab.pick(1, 3));
        let budget = tokens / 8 / CHUNK * CHUNK;
        let visited = budget + budget * 24 / 1024 * CHUNK + LOCAL * CHUNK;
        let rank = (RANK_SHARE * key_dims(lab) as f64) as usize;
        let kvs = [
            "full".to_owned(),
            format!("shadowkv(rank={rank},budget={budget})"),
            format!("shadowkv(budget={budget})"),
            format!("streaming(budget={visited})"),
        ];
        let mut losses = vec![0.0; kvs.len()];
        for text in 0..texts {
            let ids = lab.prose(text * (tokens + follow), tokens + follow)?;
            let (prompt, rest) = ids.split_at(tokens);
            for (kv, loss) in kvs.iter().zip(&mut losses) {
                lab.say(&format!("text {} of {texts}: {kv}", text + 1))?;
                let mut session = lab.read(kv, prompt)?;
                *loss += lab.follow(&mut session, rest)? / texts as f64;
            }
        }
        for (kv, loss) in kvs.iter().zip(&losses) {
            results.measured(format!("loss of {follow} tokens behind {tokens}"), kv, *loss, "nats");
        }
        let worse = |index: usize| 100.0 * (losses[index] / losses[0] - 1.0);
        results.at_most(format!("loss above the full cache's with rank {rank}"), worse(1), 2.0, "%");
        results.at_most("that over what sinks and a window lose", worse(1) / worse(3), 0.5, "");
        Ok(())
    }

    fn recall(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let length = lab.pick(1024, 3000);
        let budget = length / 16 / CHUNK * CHUNK;
        let plan = Plan { lengths: vec![length], items: lab.pick(4, 10), ..Plan::default() };
        let rank = (RANK_SHARE * key_dims(lab) as f64) as usize;
        let kvs =
            [format!("shadowkv(rank={rank},budget={budget})"), format!("streaming(budget={})", 2 * budget)];
        let report = lab.evaluate("passkey", &plan, QuestionPlace::WithContext, &kvs)?;
        for row in &report.rows {
            results.estimated(format!("pass keys found at {length} tokens"), &row.kv, row.score, "");
        }
        let full = row(&report, "full").score.value.max(1e-9);
        let share = row(&report, &kvs[0]).score.value / full;
        results.at_least("recall over the full cache's, a sixteenth visited", share, 0.95, "");
        Ok(())
    }

    fn memory_and_speed(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (tokens, decoded) = (lab.pick(2000, 7900), lab.pick(24, 128));
        let budget = tokens / 16 / CHUNK * CHUNK;
        let ids = lab.prose(0, tokens + decoded)?;
        let (prompt, rest) = ids.split_at(tokens);
        let in_file = format!("shadowkv(budget={budget},values=file)");
        let (watched, traffic) = watched(lab, &in_file)?;
        lab.say(&format!("reading {tokens} tokens: {in_file}"))?;
        let shadow = lab.read_with(watched, prompt)?;
        let whole = lab.bf16_bytes(tokens);
        let fast = lab.kv_bytes(&shadow);
        let offloaded = format!("tier(ram={fast})");
        let kvs = [in_file, offloaded, "full".to_owned(), format!("shadowkv(budget={budget})")];
        let mut sessions = vec![shadow];
        for kv in &kvs[1..] {
            lab.say(&format!("reading {tokens} tokens: {kv}"))?;
            sessions.push(lab.read(kv, prompt)?);
        }
        for (kv, session) in kvs.iter().zip(&sessions) {
            let share = lab.kv_bytes(session) / whole;
            results.measured(format!("RAM over a bf16 cache, {tokens} tokens"), kv, share, "");
        }
        results.at_most("RAM over a bf16 cache, values in a file", fast / whole, 0.25, "");
        let times = decode_in_turns(lab, &mut sessions, rest)?;
        for (kv, ms) in kvs.iter().zip(&times) {
            results.measured(format!("decoding behind {tokens} tokens"), kv, *ms, "ms");
        }
        results.at_least(
            "tokens/s over a cache that lies in a file beyond the same RAM",
            times[1] / times[0],
            2.0,
            "",
        );
        results.measured("a token over one with the full cache in RAM", &kvs[0], times[0] / times[2], "");
        results.measured("a token over one with the full cache in RAM", &kvs[3], times[3] / times[2], "");
        results.at_least("chosen chunks that were there already", 100.0 * traffic.hit_rate(), 50.0, "%");
        let values: usize = lab.engine().kv_shape().layers.iter().map(|l| l.kv_heads * l.value_dim * 2).sum();
        let fetched = traffic.value_bytes() as f64 / decoded as f64 / (values * tokens) as f64;
        results.at_most("values of newly chosen chunks over all values, without the rows around them that a file gives as well", fetched, 0.125, "");
        Ok(())
    }
}

fn key_dims(lab: &mut Lab<'_>) -> usize {
    lab.engine().kv_shape().layers.iter().map(|layer| layer.kv_heads * layer.key_dim).max().unwrap_or(0)
}

/// The method of a pipeline of one, and its counts.
fn watched(lab: &mut Lab<'_>, kv: &str) -> Result<(Box<dyn Method>, Arc<Traffic>), EvalError> {
    let wrong = |reason: String| EvalError::Pipeline { kv: kv.to_owned(), reason };
    let pipeline = Pipeline::parse(kv).map_err(|error| wrong(error.to_string()))?;
    let method = ShadowKv::new(pipeline.stages()[0].arguments(), lab.engine().kv_shape()).map_err(wrong)?;
    let traffic = method.traffic();
    Ok((Box::new(method), traffic))
}

/// Milliseconds for a token of each session, the median, all decoding `tokens` by turns, so that what else the machine does meets
/// all of them.
fn decode_in_turns(
    lab: &mut Lab<'_>,
    sessions: &mut [Session],
    tokens: &[u32],
) -> Result<Vec<f64>, EvalError> {
    let mut times = vec![Vec::new(); sessions.len()];
    for (turn, part) in tokens.chunks(TURN).enumerate() {
        lab.say(&format!("decoding token {} of {}", turn * TURN, tokens.len()))?;
        for (session, times) in sessions.iter_mut().zip(&mut times) {
            for &token in part {
                let start = Instant::now();
                lab.engine().decode(session, &[token], &mut |_, _| {})?;
                times.push(1e3 * start.elapsed().as_secs_f64());
            }
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        percentile(&times, 0.5).unwrap_or(f64::NAN)
    };
    Ok(times.into_iter().map(median).collect())
}

/// Counts, at the end of a prompt, how many directions have [`ENERGY`] of each layer's keys, all heads together, before rotation and
/// after it.
struct Spectrum(Arc<Mutex<Vec<[usize; 2]>>>);

impl Method for Spectrum {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let layers: Vec<usize> = cache.shape().full_layers().collect();
        for layer in layers {
            let LayerShape { kv_heads, key_dim, .. } = cache.layer(layer);
            let (rows, width) = (cache.rows(layer, 0), kv_heads * key_dim);
            let mut joint = [vec![0f32; rows * width], vec![0f32; rows * width]];
            for kv_head in 0..kv_heads {
                let keys = cache.keys(layer, kv_head, 0..rows);
                for (position, key) in keys.chunks_exact(key_dim).enumerate() {
                    let at = position * width + kv_head * key_dim;
                    let [before, after] = joint.each_mut().map(|rows| &mut rows[at..at + key_dim]);
                    before.copy_from_slice(key);
                    after.copy_from_slice(key);
                    if let Some(rotary) = cache.rotary(layer) {
                        rotary.unrotate(before, position as u32);
                    }
                }
            }
            let ranks = joint.map(|rows| {
                let energies = energies(&rows, width);
                let wanted = ENERGY * energies.iter().sum::<f64>();
                let mut sum = 0.0;
                let met = energies.iter().position(|energy| {
                    sum += energy;
                    sum >= wanted
                });
                met.map_or(width, |index| index + 1)
            });
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(ranks);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}
