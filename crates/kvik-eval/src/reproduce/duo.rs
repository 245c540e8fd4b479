//! DuoAttention: pass keys and prose behind half of the heads, chosen by their gates and otherwise, and what it saves.

use std::time::Instant;

use super::{Experiment, Lab, Results, lab::row};
use crate::{EvalError, run::QuestionPlace, statistics::percentile, tasks::Plan};

pub(super) struct Duo;

/// What streaming heads keep: as few as the gates were trained with, since contexts are short here.
const KEPT: &str = "sink=16,recent=64";

impl Experiment for Duo {
    fn name(&self) -> &'static str {
        "duo"
    }

    fn paper(&self) -> &'static str {
        "Xiao, Tang et al., ICLR 2025, arXiv 2410.10819"
    }

    fn claim(&self) -> &'static str {
        "few heads look back far, and gates trained on synthetic pass keys find them: with half of the heads streaming, answers stay and \
         memory and attention nearly halve"
    }

    fn setting(&self) -> &'static str {
        "a 135M model with 90 KV heads instead of 7B and 8B ones, whose gates were trained on texts of up to 704 tokens; streaming heads \
         keep 16 sinks and 64 recent tokens; pass keys in a novel that are asked for behind the prompt, which is read in chunks of 512; \
         recall is relative to the full cache's"
    }

    fn run(&self, lab: &mut Lab<'_>) -> Result<Results, EvalError> {
        let mut results = Results::default();
        self.recall(lab, &mut results)?;
        self.prose(lab, &mut results)?;
        self.bytes_and_decoding(lab, &mut results)?;
        self.reading(lab, &mut results)?;
        Ok(results)
    }
}

/// The pipeline with this percentage of full heads.
fn duo(full: usize, choose: &str) -> String {
    format!("duo(full={},{KEPT},choose={choose})", full as f64 / 100.0)
}

impl Duo {
    fn recall(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (length, items) = lab.pick((1024, 4), (3000, 10));
        let plan = Plan { lengths: vec![length], items, ..Plan::default() };
        let [trained, random, inverted] = ["highest", "random", "lowest"].map(|choose| duo(50, choose));
        let mut methods = vec![trained.clone(), random.clone(), inverted.clone(), duo(0, "highest")];
        methods.extend(lab.pick(vec![], vec![duo(75, "highest"), duo(25, "highest"), duo(10, "highest")]));
        let report = lab.evaluate("passkey", &plan, QuestionPlace::After, &methods)?;
        for row in &report.rows {
            results.estimated(format!("pass keys found at {length} tokens"), &row.kv, row.score, "");
        }
        let full = row(&report, "full").score.value.max(1e-9);
        let [trained, random, inverted] =
            [trained, random, inverted].map(|kv| row(&report, &kv).score.value / full);
        results.at_least("recall at half of the heads over the full cache's", trained, 0.95, "");
        results.at_least("recall above random heads", 100.0 * (trained - random), 20.0, "points");
        results.at_most("recall of the lowest gates over the full cache's", inverted, 0.3, "");
        Ok(())
    }

    fn prose(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (prompt_tokens, follow, texts) = lab.pick((512, 64, 1), (2048, 256, 3));
        let choices =
            ["full".to_owned(), duo(50, "highest"), duo(50, "random"), duo(50, "lowest"), duo(0, "highest")];
        let mut losses = [0.0; 5];
        for text in 0..texts {
            let tokens = lab.prose(text * (prompt_tokens + follow), prompt_tokens + follow)?;
            let (prompt, rest) = tokens.split_at(prompt_tokens);
            for (kv, loss) in choices.iter().zip(&mut losses) {
                lab.say(&format!("text {} of {texts}: {kv}", text + 1))?;
                let mut session = lab.read(kv, prompt)?;
                *loss += lab.follow(&mut session, rest)? / texts as f64;
            }
        }
        for (kv, &loss) in choices.iter().zip(&losses) {
            results.measured(format!("loss of {follow} tokens behind {prompt_tokens}"), kv, loss, "nats");
        }
        results.at_most(
            "loss added by half of the heads over what streaming all adds",
            (losses[1] - losses[0]) / (losses[4] - losses[0]),
            0.5,
            "",
        );
        Ok(())
    }

    fn bytes_and_decoding(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let (short, long) = lab.pick((128, 1024), (128, 7900));
        let kv = duo(50, "highest");
        let mut decoding = |lab: &mut Lab<'_>, kv: &str, length: usize| {
            lab.say(&format!("decoding behind {length} tokens: {kv}"))?;
            let prompt = lab.prose(0, length)?;
            let mut session = lab.read(kv, &prompt)?;
            let share = lab.kv_bytes(&session) / lab.bf16_bytes(length);
            let time = lab.decode_ms(&mut session, lab.pick(16, 128))?;
            results.measured(format!("bytes after {length} tokens over bf16's"), kv, share, "");
            results.measured(format!("decoding behind {length} tokens"), kv, time, "ms");
            Ok::<_, EvalError>((share, time))
        };
        let (_, weights) = decoding(lab, "full", short)?;
        let (_, full) = decoding(lab, "full", long)?;
        let (share, half) = decoding(lab, &kv, long)?;
        let bytes = format!("bytes at half of the heads after {long} tokens over bf16's");
        results.at_most(bytes, share, lab.pick(0.6, 0.52), "");
        if lab.pick(false, true) {
            // What a token costs behind hardly anything is not attention.
            let attention = (full - weights) / (half - weights).max(1e-9);
            results.at_least(
                "attention of a decoded token in full over half of the heads",
                attention,
                1.6,
                "",
            );
        }
        Ok(())
    }

    /// How the time of reading grows when all heads stream.
    fn reading(&self, lab: &mut Lab<'_>, results: &mut Results) -> Result<(), EvalError> {
        let length = lab.pick(1024, 7600);
        let mut time = |lab: &mut Lab<'_>, kv: &str, tokens: usize| {
            let prompt = lab.prose(0, tokens)?;
            let mut seconds = Vec::new();
            for run in 0..lab.pick(1, 3) {
                lab.say(&format!("reading {tokens} tokens, run {}: {kv}", run + 1))?;
                let start = Instant::now();
                lab.read(kv, &prompt)?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            seconds.sort_by(f64::total_cmp);
            let seconds = percentile(&seconds, 0.5).unwrap_or(f64::NAN);
            results.measured(format!("reading {tokens} tokens"), kv, seconds, "s");
            Ok::<_, EvalError>(seconds)
        };
        let (streaming, half) = (duo(0, "highest"), duo(50, "highest"));
        let [first, whole] = [length / 2, length].map(|tokens| time(lab, &streaming, tokens));
        let growth = whole? / first?;
        let full = time(lab, "full", length)?;
        let faster = full / time(lab, &half, length)?;
        if lab.pick(false, true) {
            results.at_most("reading twice the tokens, all heads streaming", growth, 2.15, "");
            results.at_least("reading in full over half of the heads", faster, 1.0, "");
        }
        Ok(())
    }
}
