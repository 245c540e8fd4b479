//! H2O against a numpy model of the paper, step by step, and the invariants of its kind.

mod layer;

use std::{fs, path::Path};

use kvik_kernels::Phase;
use kvik_kv::Pipeline;
use serde::Deserialize;

use layer::{Kept, Run, Setting};

#[derive(Deserialize)]
struct Golden {
    #[serde(flatten)]
    setting: Setting,
    prompt_tokens: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    budget: usize,
    recent: f64,
    score: String,
    positions: String,
    seed: u64,
    /// `[kv_heads][rows]`.
    kept_after_prompt: Vec<Vec<u32>>,
    /// `[steps][kv_heads]`, the positions that were evicted.
    gone: Vec<Vec<Vec<u32>>>,
    positions_at_end: Vec<Vec<u32>>,
    sums: Vec<Vec<f32>>,
    /// `[heads, dim]` of the last token.
    out: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods/h2o.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn positions(kept: &Kept) -> Vec<Vec<u32>> {
    kept.iter().map(|head| head.iter().map(|row| row.0).collect()).collect()
}

fn pipeline(case: &Case) -> String {
    let Case { budget, recent, score, positions, .. } = case;
    format!("h2o(budget={budget},recent={recent},score={score},positions={positions})")
}

#[test]
fn every_step_keeps_what_the_papers_model_keeps() {
    let golden = golden();
    for case in &golden.cases {
        let pipeline = pipeline(case);
        for chunks in [vec![golden.prompt_tokens], vec![70, 1, golden.prompt_tokens - 71]] {
            let mut run = Run::new(&golden.setting, case.positions == "slot", case.seed, &pipeline);
            for chunk in chunks {
                run.step(chunk, Phase::Prefill);
            }
            run.end_of_prompt();
            let mut kept = positions(&run.look.take());
            assert_eq!(kept, case.kept_after_prompt, "{pipeline}");
            let (mut out, mut rows) = (Vec::new(), Kept::new());
            for (step, gone) in case.gone.iter().enumerate() {
                out = run.step(1, Phase::Decode);
                rows = run.look.take();
                for (kept, gone) in kept.iter_mut().zip(gone) {
                    kept.push((golden.prompt_tokens + step) as u32);
                    kept.retain(|position| !gone.contains(position));
                    assert!(kept.len() <= case.budget);
                }
                assert_eq!(positions(&rows), kept, "{pipeline}, step {step}");
            }
            assert_eq!(kept, case.positions_at_end);
            for (got, want) in rows.iter().flatten().map(|row| row.1).zip(case.sums.iter().flatten()) {
                assert!((got - want).abs() < 1e-3 * want.max(1.0), "{pipeline}: {got} {want}");
            }
            for (got, want) in out.iter().zip(case.out.iter().flatten()) {
                assert!((got - want).abs() < 1e-2, "{pipeline}: {got} {want}");
            }
        }
    }
}

#[test]
fn sums_of_a_cache_that_forgets_nothing_are_the_queries_and_of_others_at_most_that() {
    let golden = golden();
    let group = (golden.setting.heads / golden.setting.kv_heads) as f32;
    for (pipeline, exact) in [("full", true), ("h2o(budget=64)", false)] {
        let mut run = Run::new(&golden.setting, false, 0, pipeline);
        run.step(200, Phase::Prefill);
        run.end_of_prompt();
        for _ in 0..20 {
            run.step(1, Phase::Decode);
        }
        for head in run.look.take() {
            let sum: f32 = head.iter().map(|row| row.1).sum();
            let queries = group * 220.0;
            assert!(sum < queries + 0.01 && (!exact || sum > queries - 0.01), "{sum} of {queries}");
        }
    }
}

#[test]
fn all_recent_is_a_sliding_window_and_a_large_budget_changes_no_bit() {
    let golden = golden();
    let run = |pipeline: &str| {
        let mut run = Run::new(&golden.setting, true, 0, pipeline);
        let mut out = run.step(150, Phase::Prefill);
        run.end_of_prompt();
        for _ in 0..70 {
            out.extend(run.step(1, Phase::Decode));
        }
        (out.into_iter().map(f32::to_bits).collect::<Vec<u32>>(), positions(&run.look.take()))
    };
    let full = run("full");
    for positions in ["original", "slot"] {
        assert!(run(&format!("h2o(budget=220,positions={positions})")) == full);
        assert!(run(&format!("streaming(budget=220,positions={positions})")) == full);
        let window = run(&format!("h2o(budget=50,recent=1,positions={positions})"));
        assert_eq!(window.1[0], (170..220).collect::<Vec<u32>>());
        assert!(window == run(&format!("streaming(budget=50,sinks=0,positions={positions})")));
    }
    let [original, slot] = ["original", "slot"].map(|p| run(&format!("streaming(budget=50,positions={p})")));
    assert_eq!(original.1[0], [0, 1, 2, 3].into_iter().chain(174..220).collect::<Vec<u32>>());
    assert_eq!(original.1, slot.1);
    assert!(original.0 != slot.0, "sinks stand elsewhere");
}

#[test]
fn a_ratio_is_of_the_first_prompt_and_chunks_bound_the_reading() {
    let golden = golden();
    let mut run = Run::new(&golden.setting, false, 0, "h2o(ratio=0.2)");
    run.step(150, Phase::Prefill);
    run.end_of_prompt();
    assert!(run.look.take().iter().all(|head| head.len() == 30));
    run.step(40, Phase::Prefill);
    run.end_of_prompt();
    assert!(run.look.take().iter().all(|head| head.len() == 30), "later prompts do not change it");
    assert_eq!(run.cache.truncate(&mut run.store, 0), 0);
    run.step(100, Phase::Prefill);
    run.end_of_prompt();
    assert!(run.look.take().iter().all(|head| head.len() == 20), "after a new beginning they do");

    let mut run = Run::new(&golden.setting, false, 0, "h2o(budget=64,cut=chunk)");
    let mut most = 0;
    for _ in 0..12 {
        run.step(64, Phase::Prefill);
        most = most.max(run.store.used_bytes());
    }
    let tile = run.store.shape().layers[0].tile().tile_bytes();
    assert_eq!(most, golden.setting.kv_heads * tile);
    assert_eq!(
        run.cache.truncate(&mut run.store, 700),
        0,
        "what a shorter prompt would have kept is not there"
    );
}

#[test]
fn truncated_and_copied_sequences_stand_by_their_slots_again() {
    let golden = golden();
    let mut run = Run::new(&golden.setting, true, 0, "h2o(budget=40,positions=slot)");
    run.step(150, Phase::Prefill);
    run.end_of_prompt();
    for _ in 0..12 {
        run.step(1, Phase::Decode);
    }
    // Ten tokens are taken back and decoded again: the same rows in the same places, but for those that are gone for good.
    let mut fork = run.cache.fork(&mut run.store);
    assert_eq!(fork.truncate(&mut run.store, 152), 152);
    std::mem::swap(&mut run.cache, &mut fork);
    let again = run.step(1, Phase::Decode);
    let kept = positions(&run.look.take());
    assert!(kept.iter().all(|head| head.len() <= 40 && head.last() == Some(&152)), "{kept:?}");
    std::mem::swap(&mut run.cache, &mut fork);
    drop(fork);
    assert_eq!(run.cache.truncate(&mut run.store, 152), 152);
    assert_eq!(run.step(1, Phase::Decode), again);
}

#[test]
fn a_model_without_rotation_has_no_slots() {
    let golden = golden();
    let store = Run::new(&golden.setting, false, 0, "full").store;
    for pipeline in ["h2o(positions=slot)", "streaming(positions=slot)"] {
        let error = store.sequence_with(&Pipeline::parse(pipeline).unwrap()).err().unwrap().to_string();
        assert!(error.contains("does not rotate its keys"), "{error}");
    }
    let error = Pipeline::parse("h2o(ratio=0.2,cut=chunk)").unwrap_err().to_string();
    assert!(error.contains("use budget with cut=chunk"), "{error}");
}
