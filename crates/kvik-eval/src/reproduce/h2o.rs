//! H2O: the loss of a text that is written on with a fifth of its cache, memory that stays flat, and what the scores cost.

use std::time::Instant;

use kvik_kv::{CacheError, Method, OpenCache, select::top_rows};

use super::{Experiment, Lab, Results};
use crate::{EvalError, draw::Draw, statistics::percentile};

pub(super) struct H2o;

impl Experiment for H2o {
    fn name(&self) -> &'static str {
        "h2o"
    }

    fn paper(&self) -> &'static str {
        "Zhang et al., NeurIPS 2023, arXiv 2306.14048"
    }

    fn claim(&self) -> &'static str {
        "a fifth of the tokens, recent ones and those with the most attention so far, writes on about as well as all, in constant memory"
    }

    fn setting(&self) -> &'static str {
        "a 135M model instead of OPT-6.7B to 66B; prose of which the first half is read and the second decoded, token by token, with \
         eviction at every step; baselines have the same budget; the offloading server of the paper is not part of this"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.loss(lab, &mut results)?;
        self.stream(lab, &mut results)?;
        self.reading(lab, &mut results)?;
        self.decoding(lab, &mut results)?;
        Ok(results)
    }
}

impl H2o {
    fn loss(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (half, texts) = lab.pick((256, 1), (1024, 2));
        let shares = lab.pick(&[20][..], &[5, 10, 20, 40][..]);
        let mut full = 0.0;
        // Of each share: this method, sinks and window, window, random rows.
        let mut losses = vec![[0.0; 4]; shares.len()];
        for text in 0..texts {
            let tokens = lab.prose(text * 2 * half, 2 * half)?;
            let (prompt, rest) = tokens.split_at(half);
            lab.say(&format!("text {} of {texts}: full", text + 1))?;
            let mut session = lab.read("full", prompt)?;
            full += lab.follow(&mut session, rest)?;
            for (share, losses) in shares.iter().zip(&mut losses) {
                let budget = share * tokens.len() / 100;
                for (kv, loss) in pipelines(budget).iter().zip(losses.iter_mut()) {
                    lab.say(&format!("text {} of {texts}: {kv}", text + 1))?;
                    let mut session = lab.read(kv, prompt)?;
                    *loss += lab.follow(&mut session, rest)?;
                }
                lab.say(&format!("text {} of {texts}: {budget} random rows", text + 1))?;
                let mut session = lab.read_with(Box::new(Random { budget }), prompt)?;
                losses[3] += lab.follow(&mut session, rest)?;
            }
        }
        let mean = |sum: f64| sum / texts as f64;
        let what = |share: &str| format!("loss of {half} tokens behind {half}, {share} of the rows");
        results.measured(what("100 %"), "full", mean(full), "nats");
        for (share, losses) in shares.iter().zip(&losses) {
            let names = pipelines(share * 2 * half / 100);
            let names = names.iter().map(String::as_str).chain(["random rows"]);
            for (kv, &loss) in names.zip(losses) {
                results.measured(what(&format!("{share} %")), kv, mean(loss), "nats");
            }
            if *share == 20 {
                let [h2o, streaming, window, random] = losses.map(|loss| loss - full);
                results.at_most("loss added at 20 % over what a window adds", h2o / window, 0.4, "");
                results.at_most(
                    "loss added at 20 % over what sinks and window add",
                    h2o / streaming,
                    1.0,
                    "",
                );
                results.at_most("loss added at 20 % over what random rows add", h2o / random, 1.0, "");
            }
        }
        Ok(())
    }

    /// A text that grows far beyond the budget, by slots.
    fn stream(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (prompt_tokens, budget) = lab.pick((256, 128), (512, 512));
        let tokens = lab.pick(600, 4000).min(lab.engine().context_tokens() - prompt_tokens);
        let text = lab.prose(0, prompt_tokens + tokens)?;
        let (prompt, rest) = text.split_at(prompt_tokens);
        let part = rest.len() / 4;
        for positions in ["original", "slot"] {
            let kv = format!("h2o(budget={budget},positions={positions})");
            let mut session = lab.read(&kv, prompt)?;
            let (mut bytes, mut losses) = (Vec::new(), Vec::new());
            for (index, part) in rest.chunks_exact(part).enumerate() {
                lab.say(&format!("decoding {tokens} tokens, part {} of 4: {kv}", index + 1))?;
                losses.push(lab.follow(&mut session, part)?);
                bytes.push(lab.kv_bytes(&session));
            }
            for (index, loss) in losses.iter().enumerate() {
                results.measured(
                    format!("loss of {part} tokens, part {} of 4", index + 1),
                    &kv,
                    *loss,
                    "nats",
                );
            }
            results.at_most(
                format!("bytes after {tokens} tokens over after {part}, {positions}"),
                bytes[3] / bytes[0],
                1.0,
                "",
            );
        }
        Ok(())
    }

    /// What the second pass over the keys costs while a prompt is read.
    fn reading(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (length, repeats) = lab.pick((1024, 1), (7600, 3));
        let prompt = lab.prose(0, length)?;
        let time = |lab: &mut Lab<'_>, kv: &str, tokens: usize| {
            let mut times = Vec::with_capacity(repeats);
            for _ in 0..repeats {
                lab.say(&format!("reading {tokens} tokens: {kv}"))?;
                let start = Instant::now();
                lab.read(kv, &prompt[..tokens])?;
                times.push(start.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            Ok::<f64, EvalError>(percentile(&times, 0.5).unwrap_or(f64::NAN))
        };
        let kv = "h2o(ratio=0.2)";
        let [half, full, scored] =
            [time(lab, "full", length / 2)?, time(lab, "full", length)?, time(lab, kv, length)?];
        results.measured(format!("reading {length} tokens"), "full", full, "s");
        results.measured(format!("reading {length} tokens"), kv, scored, "s");
        // Attention grows with the square of the length and everything else with the length: what twice the half leaves is half of it.
        let attention = 2.0 * (full - 2.0 * half);
        results.measured(format!("attention in that, {length} tokens"), "full", attention, "s");
        if lab.pick(false, true) {
            results.at_most("scores' time over attention's", (scored - full) / attention, 0.6, "");
        }
        Ok(())
    }

    fn decoding(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let length = lab.pick(1024, 7600);
        let prompt = lab.prose(0, length)?;
        let mut times = Vec::new();
        for kv in ["full", "h2o(ratio=0.2)", "h2o(ratio=0.2,positions=slot)"] {
            lab.say(&format!("decoding behind {length} tokens: {kv}"))?;
            let mut session = lab.read(kv, &prompt)?;
            let share = lab.kv_bytes(&session) / lab.bf16_bytes(length);
            results.measured(format!("bytes after {length} tokens over bf16's"), kv, share, "");
            let time = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("decoding behind {length} tokens"), kv, time, "ms");
            times.push((share, time));
        }
        results.at_most("bytes at 20 % over bf16's", times[1].0, lab.pick(0.3, 0.22), "");
        if lab.pick(false, true) {
            results.at_least(
                format!("a token behind {length} in full over one at 20 %"),
                times[0].1 / times[1].1,
                1.0,
                "",
            );
        }
        Ok(())
    }
}

/// This method, sinks and window, and a window, with the same budget.
fn pipelines(budget: usize) -> [String; 3] {
    [
        format!("h2o(budget={budget})"),
        format!("streaming(budget={budget})"),
        format!("streaming(budget={budget},sinks=0)"),
    ]
}

/// The first four tokens, half of the budget recent ones, and the rest at random, at every step.
#[derive(Clone)]
struct Random {
    budget: usize,
}

impl Random {
    fn cut(&self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let positions = cache.positions(layer, kv_head);
            if positions.len() <= self.budget {
                continue;
            }
            let pinned = |row: usize| {
                positions[row] < 4 || positions[row] as usize + self.budget / 2 >= cache.tokens()
            };
            let scores: Vec<f32> = positions.iter().map(|&p| priority(layer, kv_head, p)).collect();
            if positions.len() == self.budget + 1 {
                let others = (0..scores.len()).filter(|&row| !pinned(row));
                let gone = others.min_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0);
                cache.evict(layer, kv_head, gone)?;
            } else {
                cache.retain(layer, kv_head, &top_rows(&scores, self.budget, pinned))?;
            }
        }
        Ok(())
    }
}

/// What is drawn for a row, once and for all: the rows with the highest draws are a fair sample at any time.
fn priority(layer: usize, kv_head: usize, position: u32) -> f32 {
    let index = (layer as u64) << 48 | (kv_head as u64) << 32 | u64::from(position);
    Draw::new(0, "rows", index).below(1 << 24) as f32
}

impl Method for Random {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.cut(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.cut(cache)
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
