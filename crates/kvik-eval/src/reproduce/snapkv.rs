//! SnapKV: pass keys in long prose, the text that follows a prompt, and what decoding costs.

use std::sync::{Arc, Mutex, PoisonError};

use kvik_kv::{CacheError, Evidence, Method, OpenCache, select::top_rows};

use super::{Experiment, Lab, Results, lab::row};
use crate::{EvalError, run::QuestionPlace, tasks::Plan};

pub(super) struct SnapKv;

impl Experiment for SnapKv {
    fn name(&self) -> &'static str {
        "snapkv"
    }

    fn paper(&self) -> &'static str {
        "Li et al., NeurIPS 2024, arXiv 2404.14469"
    }

    fn claim(&self) -> &'static str {
        "a prompt's cache cut to a fixed number of rows answers about as well, and decoding no longer slows with the prompt"
    }

    fn setting(&self) -> &'static str {
        "a 135M model instead of 7B to 56B; pass keys of five digits in a novel, question at the end, and 128 tokens that follow 2,048 \
         of prose; recall is relative to the full cache's"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.recall(lab, &mut results)?;
        self.continuation(lab, &mut results)?;
        self.speed(lab, &mut results)?;
        Ok(results)
    }
}

impl SnapKv {
    fn recall(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let length = lab.pick(1024, 4000);
        let budget = length / 8;
        let plan = Plan { lengths: vec![length], items: lab.pick(4, 12), ..Plan::default() };
        let methods = [
            format!("snapkv(budget={budget})"),
            format!("streaming(budget={budget})"),
            format!("random(budget={budget})"),
            format!("l2norm(budget={budget})"),
        ];
        let report = lab.evaluate("passkey", &plan, QuestionPlace::WithContext, &methods)?;
        for row in &report.rows {
            results.estimated(format!("pass keys found at {length} tokens"), &row.kv, row.score, "");
        }
        let full = row(&report, "full").score.value.max(1e-9);
        let [snapkv, streaming] = [&methods[0], &methods[1]].map(|kv| row(&report, kv).score.value / full);
        results.at_least(format!("recall at {budget} rows over the full cache's"), snapkv, 0.9, "");
        results.at_least("recall above sinks and window", 100.0 * (snapkv - streaming), 25.0, "points");
        // The question is asked after the method has acted: much weaker, as the card says.
        let after = lab.evaluate("passkey", &plan, QuestionPlace::After, &methods[..1])?;
        results.estimated(
            "pass keys found, question unknown",
            &methods[0],
            row(&after, &methods[0]).score,
            "",
        );
        Ok(())
    }

    /// How much of the way from random rows to the rows that the future attends to most is made.
    fn continuation(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (prompt_tokens, budget, follow, texts) =
            (lab.pick(512, 2048), lab.pick(64, 128), 128, lab.pick(1, 6));
        let (mut full, mut snapkv, mut random, mut oracle) = (0.0, 0.0, 0.0, 0.0);
        for text in 0..texts {
            lab.say(&format!("text {} of {texts}", text + 1))?;
            let tokens = lab.prose(text * (prompt_tokens + follow), prompt_tokens + follow)?;
            let (prompt, rest) = tokens.split_at(prompt_tokens);
            let attention = Arc::new(Mutex::new(Vec::new()));
            let mut session = lab.read_with(Box::new(Watch(Arc::clone(&attention))), prompt)?;
            full += lab.follow(&mut session, rest)?;
            drop(session);
            let future = std::mem::take(&mut *attention.lock().unwrap_or_else(PoisonError::into_inner));
            let mut session = lab.read_with(Box::new(Keep { scores: future, budget }), prompt)?;
            oracle += lab.follow(&mut session, rest)?;
            let mut session = lab.read(&format!("snapkv(budget={budget})"), prompt)?;
            snapkv += lab.follow(&mut session, rest)?;
            let mut session = lab.read(&format!("random(budget={budget})"), prompt)?;
            random += lab.follow(&mut session, rest)?;
        }
        let mean = |sum: f64| sum / texts as f64;
        for (kv, sum) in [
            ("full", full),
            ("snapkv", snapkv),
            ("random", random),
            ("rows that the future attends to", oracle),
        ] {
            results.measured(
                format!("loss of {follow} tokens behind {prompt_tokens}, {budget} rows"),
                kv,
                mean(sum),
                "nats",
            );
        }
        let gap = (random - snapkv) / (random - oracle);
        results.at_least("part of the way from random rows to the future's", gap, 0.5, "");
        Ok(())
    }

    fn speed(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (short, long) = lab.pick((600, 1500), (1000, 7900));
        let kv = "snapkv(budget=512)";
        let mut times = [0.0; 2];
        for (length, time) in [short, long].into_iter().zip(&mut times) {
            lab.say(&format!("decoding behind {length} tokens"))?;
            let prompt = lab.prose(0, length)?;
            let mut session = lab.read(kv, &prompt)?;
            let share = lab.kv_bytes(&session) / lab.bf16_bytes(length);
            results.measured(format!("bytes after {length} tokens over bf16's"), kv, share, "");
            if length == long {
                let rows = 512f64 / length as f64;
                results.at_most("bytes over those of the rows kept", share / rows, 1.15, "");
            }
            *time = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("decoding behind {length} tokens"), kv, *time, "ms");
            drop(session);
            let mut session = lab.read("full", &prompt)?;
            let full = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("decoding behind {length} tokens"), "full", full, "ms");
        }
        results.at_most(
            format!("decoding behind {long} tokens over behind {short}"),
            times[1] / times[0],
            1.15,
            "",
        );
        Ok(())
    }
}

/// Adds up the attention that each row of the prompt gets from decoded tokens, `[layer and head][row]`.
struct Watch(Arc<Mutex<Vec<Vec<f32>>>>);

impl Method for Watch {
    fn evidence(&self) -> Evidence {
        Evidence { step: true, ..Evidence::NONE }
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (layer, kv_head)) in cache.heads().into_iter().enumerate() {
            let step = &cache.statistics(layer, kv_head).step;
            if sums.len() <= index {
                // The decoded tokens' own rows come behind those of the prompt.
                sums.push(vec![0.0; step.len() - cache.new_tokens()]);
            }
            sums[index].iter_mut().zip(step).for_each(|(sum, &mass)| *sum += mass);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

/// Keeps the rows of a prompt with the highest given scores.
#[derive(Clone)]
struct Keep {
    scores: Vec<Vec<f32>>,
    budget: usize,
}

impl Method for Keep {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for ((layer, kv_head), scores) in cache.heads().into_iter().zip(&self.scores) {
            cache.retain(layer, kv_head, &top_rows(scores, self.budget, |_| false))?;
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
