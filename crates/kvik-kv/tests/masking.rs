//! Tokens that methods drop are as tokens that attention does not see.

mod layer;

use kvik_kernels::{Isa, Phase};
use kvik_kv::{CacheError, Direction, Method, OpenCache, Pipeline, SegmentRow, methods::METHODS};

use layer::{Run, Setting};

const PROMPT: usize = 150;

fn setting() -> Setting {
    Setting { heads: 4, kv_heads: 2, dim: 16, scale: 0.25, frequencies: Vec::new() }
}

/// Puts all rows into a segment of their own, and gives those that are not among `kept` (`[kv_heads][positions]`) so low a score that
/// they get no attention.
#[derive(Clone)]
struct Mask {
    kept: Option<Vec<Vec<u32>>>,
}

impl Method for Mask {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (index, (layer, kv_head)) in cache.heads().into_iter().enumerate() {
            let hidden = |position| self.kept.as_ref().is_some_and(|kept| !kept[index].contains(position));
            let rows = cache.rows(layer, kv_head);
            let (keys, values) = (cache.keys(layer, kv_head, 0..rows), cache.values(layer, kv_head, 0..rows));
            let positions = cache.positions(layer, kv_head);
            let dims = (keys.len() / rows, values.len() / rows);
            let masked: Vec<SegmentRow<'_>> = (0..rows)
                .map(|row| SegmentRow {
                    key: &keys[row * dims.0..][..dims.0],
                    value: &values[row * dims.1..][..dims.1],
                    position: positions[row],
                    bias: if hidden(&positions[row]) { -1e9 } else { 0.0 },
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

/// The largest difference of the attention of a token behind `prompt` others under `pipeline` to attention with all others masked,
/// and to attention with none masked.
fn differences(pipeline: &str, prompt: usize, budget: usize) -> [f32; 2] {
    let read = |mut run: Run| {
        run.step(prompt, Phase::Prefill);
        run.end_of_prompt();
        run
    };
    let with = |pipeline: &str, kept| {
        let mut run = Run::new(&setting(), false, 3, "full");
        let mut methods = Pipeline::parse(pipeline).unwrap().methods(run.store.shape()).unwrap();
        methods.extend([Box::new(Mask { kept }) as Box<dyn Method>, Box::new(run.look.clone())]);
        run.cache = run.store.sequence_of(methods);
        run
    };
    let dropped = read(with(pipeline, None));
    let kept: Vec<Vec<u32>> =
        dropped.look.take().iter().map(|head| head.iter().map(|row| row.0).collect()).collect();
    assert!(kept.iter().all(|head| head.len() == budget), "{pipeline}");
    let (masked, full) = (read(with("full", Some(kept))), read(with("full", None)));
    let [dropped, masked, full] = [dropped, masked, full].map(|mut run| run.step(1, Phase::Decode));
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    [far(&dropped, &masked), far(&dropped, &full)]
}

#[test]
fn dropped_tokens_are_as_masked_ones() {
    // Weights are rounded to bf16 relative to the largest score so far. Within a tile that is the same for both; over several it
    // depends on where tiles begin.
    let exact = if Isa::active() == Isa::Amx { 4e-3 } else { 1e-4 };
    for (prompt, budget, tolerance) in [(60, 40, exact), (150, 50, 4e-3)] {
        for pipeline in choosers(budget) {
            let [masked, full] = differences(&pipeline, prompt, budget);
            assert!(masked < tolerance, "{pipeline} of {prompt}: {masked}");
            assert!(full > 0.02, "{pipeline} drops what counts: {full}");
        }
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
