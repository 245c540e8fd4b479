//! Tokens that methods drop are as tokens that attention does not see.

mod layer;

use kvik_kernels::{Isa, Phase};
use kvik_kv::{CacheError, Direction, Method, OpenCache, Pipeline, SegmentRow, methods::METHODS};

use layer::{Run, Setting};

const PROMPT: usize = 150;

fn setting() -> Setting {
    Setting { heads: 4, kv_heads: 2, dim: 16, scale: 0.25, frequencies: Vec::new() }
}

/// Keeps all rows, and gives those that are not among `kept` (`[kv_heads][positions]`) so low a score that they get no attention.
#[derive(Clone)]
struct Mask {
    kept: Vec<Vec<u32>>,
}

impl Method for Mask {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for ((layer, kv_head), kept) in cache.heads().into_iter().zip(&self.kept) {
            let rows = cache.rows(layer, kv_head);
            let (keys, values) = (cache.keys(layer, kv_head, 0..rows), cache.values(layer, kv_head, 0..rows));
            let positions = cache.positions(layer, kv_head);
            let dims = (keys.len() / rows, values.len() / rows);
            let masked: Vec<SegmentRow<'_>> = (0..rows)
                .map(|row| SegmentRow {
                    key: &keys[row * dims.0..][..dims.0],
                    value: &values[row * dims.1..][..dims.1],
                    position: positions[row],
                    bias: if kept.contains(&positions[row]) { 0.0 } else { -1e9 },
                })
                .collect();
            let segment = cache.segment(layer, &masked)?;
            cache.retain(layer, kv_head, &[])?;
            cache.insert(layer, kv_head, segment);
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

/// The methods of the registry that choose tokens and need no calibration, with a budget.
fn choosers(budget: usize) -> Vec<String> {
    let choose =
        METHODS.iter().filter(|method| method.direction == Direction::Tokens && method.calibration.is_none());
    let written = |method: &&kvik_kv::MethodInfo| {
        let settings = [("budget", budget), ("skip", 0)];
        let has = |name: &str| method.parameters.iter().any(|parameter| parameter.name == name);
        assert!(has("budget"), "{} has no budget: say here what makes it drop rows", method.name);
        let given = settings.iter().filter(|(name, _)| has(name)).map(|(name, n)| format!("{name}={n}"));
        format!("{}({})", method.name, given.collect::<Vec<_>>().join(","))
    };
    choose.map(written).collect()
}

#[test]
fn dropped_tokens_are_as_masked_ones() {
    // Probabilities in bf16 are rounded from the largest score so far, and where tiles begin is another place.
    let tolerance = if Isa::active() >= Isa::Avx512Bf16 { 4e-3 } else { 1e-4 };
    for pipeline in choosers(50) {
        let mut dropped = Run::new(&setting(), false, 3, &pipeline);
        dropped.step(PROMPT, Phase::Prefill);
        dropped.end_of_prompt();
        let kept: Vec<Vec<u32>> =
            dropped.look.take().iter().map(|head| head.iter().map(|row| row.0).collect()).collect();
        assert!(kept.iter().all(|head| head.len() == 50), "{pipeline}");

        let mut masked = Run::new(&setting(), false, 3, "full");
        masked.cache = masked.store.sequence_of(vec![Box::new(Mask { kept })]);
        masked.step(PROMPT, Phase::Prefill);
        masked.end_of_prompt();
        let mut full = Run::new(&setting(), false, 3, "full");
        full.step(PROMPT, Phase::Prefill);
        full.end_of_prompt();

        let [dropped, masked, full] = [dropped, masked, full].map(|mut run| run.step(1, Phase::Decode));
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far(&dropped, &masked) < tolerance, "{pipeline}: {}", far(&dropped, &masked));
        assert!(far(&dropped, &full) > 0.02, "{pipeline} drops what counts");
    }
}

#[test]
fn a_budget_beyond_the_text_changes_no_bit() {
    let run = |pipeline: &str| {
        let mut run = Run::unwatched(&setting(), false, 3, pipeline);
        let mut out = run.step(PROMPT, Phase::Prefill);
        run.end_of_prompt();
        (0..20).for_each(|_| out.extend(run.step(1, Phase::Decode)));
        out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    };
    let full = run("full");
    for pipeline in choosers(PROMPT + 20).into_iter().chain([Pipeline::full().to_string()]) {
        assert!(run(&pipeline) == full, "{pipeline}");
    }
}
