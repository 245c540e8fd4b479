//! KIVI: which axis to group along, what two and four bits cost, and what they save.

use kvik_kv::{CacheError, Method, OpenCache, SegmentRow};

use super::{Experiment, Lab, Results, lab::row};
use crate::{EvalError, run::QuestionPlace, tasks::Plan};

pub(super) struct Kivi;

impl Experiment for Kivi {
    fn name(&self) -> &'static str {
        "kivi"
    }

    fn paper(&self) -> &'static str {
        "Liu, Yuan et al., ICML 2024, arXiv 2402.02750"
    }

    fn claim(&self) -> &'static str {
        "keys grouped by channel and values by token keep their quality at 2 bits, where other axes do not, in a fraction of the memory"
    }

    fn setting(&self) -> &'static str {
        "a 135M model with grouped queries instead of 7B ones; Wikipedia text followed by decoding behind a prefilled part; the axes are \
         compared on the loss behind prompts of prose whose rows but the last 128 were coded once"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.quality(lab, &mut results)?;
        self.axes(lab, &mut results)?;
        self.bytes_and_speed(lab, &mut results)?;
        Ok(results)
    }
}

impl Kivi {
    fn quality(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let plan = Plan {
            lengths: vec![lab.pick(512, 1024)],
            items: lab.pick(1, 6),
            forced_tokens: lab.pick(128, 512),
            ..Plan::default()
        };
        let methods = ["kivi(bits=2)", "kivi(bits=4)", "kivi(bits=8)"].map(String::from);
        let perplexity = lab.evaluate("ppl", &plan, QuestionPlace::WithContext, &methods)?;
        for row in &perplexity.rows {
            results.estimated("perplexity", &row.kv, row.score, "");
        }
        let divergence = lab.evaluate("kl", &plan, QuestionPlace::WithContext, &methods)?;
        for row in &divergence.rows {
            results.estimated("divergence from the full cache", &row.kv, row.score, "nats");
        }
        let full = row(&perplexity, "full").score.value;
        let four = row(&perplexity, "kivi(bits=4)").score.value;
        results.at_most("perplexity added at 4 bits", 100.0 * (four / full - 1.0), 1.5, "%");
        Ok(())
    }

    fn axes(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        use Axis::{Channel, Token};
        let (prompt_tokens, follow, texts) = (lab.pick(512, 1024), 128, lab.pick(1, 10));
        let choices = [
            ("K by channel, V by token", Channel, Token),
            ("K by token, V by token", Token, Token),
            ("K by token, V by channel", Token, Channel),
            ("K by channel, V by channel", Channel, Channel),
        ];
        let (mut full, mut losses) = (0.0, [0.0; 4]);
        for text in 0..texts {
            lab.say(&format!("axes, text {} of {texts}", text + 1))?;
            let tokens = lab.prose(text * (prompt_tokens + follow), prompt_tokens + follow)?;
            let (prompt, rest) = tokens.split_at(prompt_tokens);
            let mut session = lab.read("full", prompt)?;
            full += lab.follow(&mut session, rest)?;
            for ((_, keys, values), loss) in choices.into_iter().zip(&mut losses) {
                let mut session = lab.read_with(Box::new(Coded { keys, values }), prompt)?;
                *loss += lab.follow(&mut session, rest)?;
            }
        }
        let added = losses.map(|loss| (loss - full) / texts as f64);
        for ((name, ..), added) in choices.iter().zip(added) {
            results.measured("loss added by 2 bits", *name, added, "nats");
        }
        let best_other = added[1..].iter().copied().fold(f64::INFINITY, f64::min);
        results.at_most("loss added by KIVI's axes over the best others'", added[0] / best_other, 1.0, "");
        results.at_most("loss added over that of keys by token", added[0] / added[1], 0.6, "");
        Ok(())
    }

    fn bytes_and_speed(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (bytes_at, speed_at) = lab.pick((1024, 1024), (4096, 7900));
        let prompt = lab.prose(0, bytes_at)?;
        let session = lab.read("kivi(bits=2)", &prompt)?;
        let share = lab.kv_bytes(&session) / lab.bf16_bytes(bytes_at);
        results.measured(format!("bytes after {bytes_at} tokens over bf16's"), "kivi(bits=2)", share, "");
        let threshold = lab.pick(0.4, 0.25);
        results.at_most(format!("bytes at 2 bits after {bytes_at} tokens over bf16's"), share, threshold, "");
        drop(session);
        let prompt = lab.prose(0, speed_at)?;
        let mut times = Vec::new();
        for kv in ["full", "kivi(bits=2)", "kivi(bits=4)"] {
            lab.say(&format!("decoding behind {speed_at} tokens: {kv}"))?;
            let mut session = lab.read(kv, &prompt)?;
            let time = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("decoding behind {speed_at} tokens"), kv, time, "ms");
            times.push(time);
        }
        results.at_least("a whole decoded token in bf16 over one in 2 bits", times[0] / times[1], 1.0, "");
        Ok(())
    }
}

/// What the numbers of a group have in common.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    /// A channel: 32 tokens of it.
    Channel,
    /// A token: 32 channels of it.
    Token,
}

/// Codes the rows of a prompt in 2 bits and back, all but the last 128.
#[derive(Clone, Copy)]
struct Coded {
    keys: Axis,
    values: Axis,
}

impl Method for Coded {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            let coded = rows.saturating_sub(128) / 32 * 32;
            let mut keys = cache.keys(layer, kv_head, 0..coded);
            let mut values = cache.values(layer, kv_head, 0..coded);
            if coded == 0 {
                continue;
            }
            let (key_dim, value_dim) = (keys.len() / coded, values.len() / coded);
            code(&mut keys, key_dim, self.keys);
            code(&mut values, value_dim, self.values);
            let positions = cache.positions(layer, kv_head);
            let rows_of: Vec<SegmentRow<'_>> = (0..coded)
                .map(|row| SegmentRow {
                    key: &keys[row * key_dim..][..key_dim],
                    value: &values[row * value_dim..][..value_dim],
                    position: positions[row],
                    bias: 0.0,
                })
                .collect();
            let segment = cache.segment(layer, &rows_of)?;
            let keep: Vec<u32> = (coded as u32..rows as u32).collect();
            cache.retain(layer, kv_head, &keep)?;
            cache.insert(layer, kv_head, segment);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(*self)
    }
}

/// Rounds `numbers` (`[rows, dim]`) to four levels between the smallest and the largest of each group of 32.
fn code(numbers: &mut [f32], dim: usize, axis: Axis) {
    let rows = numbers.len() / dim;
    let (stride, groups): (usize, Vec<usize>) = match axis {
        Axis::Token => {
            (1, (0..rows).flat_map(|row| (0..dim / 32).map(move |g| row * dim + 32 * g)).collect())
        }
        Axis::Channel => {
            (dim, (0..rows / 32).flat_map(|g| (0..dim).map(move |d| 32 * g * dim + d)).collect())
        }
    };
    for start in groups {
        let group = |i: usize| start + i * stride;
        let (min, max) = (0..32)
            .map(|i| numbers[group(i)])
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(x), max.max(x)));
        let scale = (max - min) / 3.0;
        for i in 0..32 {
            let x = &mut numbers[group(i)];
            *x = if scale > 0.0 { min + ((*x - min) / scale).round() * scale } else { min };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_four_levels_in_each_group_along_the_axis() {
        let original: Vec<f32> = (0..64 * 32).map(|i| ((i * 37) % 101) as f32).collect();
        for (axis, stride) in [(Axis::Token, 1), (Axis::Channel, 32)] {
            let mut coded = original.clone();
            code(&mut coded, 32, axis);
            let mut levels: Vec<f32> = (0..32).map(|i| coded[i * stride]).collect();
            levels.sort_by(f32::total_cmp);
            levels.dedup();
            assert!(levels.len() <= 4, "{levels:?}");
            let worst = coded.iter().zip(&original).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst > 0.0 && worst <= 100.0 / 6.0 + 1e-3, "{worst}");
        }
    }
}
