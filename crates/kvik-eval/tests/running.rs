//! The runner against subjects whose answers are known: what is fed, what is forked, what is kept, and what a report says.

mod scripted;

use std::{ops::ControlFlow, path::Path, sync::LazyLock};

use kvik_eval::{
    EvalError,
    data::DataFolder,
    item::Mode,
    journal::Journal,
    prompt::Prompter,
    report::Report,
    run::{QuestionPlace, Run, Settings, prepare, run},
    tasks::{Choice, Kit, Plan},
};
use kvik_model::{Checkpoint, Tokenizer};
use scripted::Inductive;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let path = kvik::pull::ensure("smollm2").unwrap();
    Tokenizer::from_checkpoint(&Checkpoint::open(&path).unwrap()).unwrap()
});

fn kit() -> Kit<'static> {
    Kit { prompter: Prompter::new(&TOKENIZER, None).unwrap(), data: DataFolder::at("no/such/folder") }
}

fn plan() -> Plan {
    Plan { lengths: vec![400, 600], items: 3, forced_tokens: 24, turns: 3, ..Plan::default() }
}

fn settings() -> Settings {
    Settings { model: "scripted".into(), question: QuestionPlace::WithContext }
}

/// Runs `tasks` under the full cache and one that remembers the last `window` tokens, and stops after `steps`.
fn evaluate(tasks: &[&str], window: usize, journal: &mut Journal, steps: usize) -> (Run, Inductive) {
    let kit = kit();
    let mut subject = Inductive::new(TOKENIZER.vocab_len(), window);
    let prepared = prepare(&kit, &Choice::parse_all(tasks).unwrap(), &plan(), 8192).unwrap();
    let mut left = steps;
    let run = run(&mut subject, &kit, prepared, &settings(), journal, &mut |_| {
        left = left.saturating_sub(1);
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    (run.unwrap(), subject)
}

fn report(run: &Run) -> Report {
    Report::new(run, &settings(), 1, Vec::new())
}

#[test]
fn a_perfect_copier_scores_all_and_one_that_forgets_scores_less() {
    let (run, _) = evaluate(&["copy", "recall", "kl", "ppl"], 100, &mut Journal::in_memory(), usize::MAX);
    let report = report(&run);
    assert!(run.finished && report.finished);
    let rows = |task: &str| &report.tasks.iter().find(|of| of.task == task).unwrap().rows;
    for task in ["copy", "recall"] {
        assert_eq!(rows(task)[0].score.value, 1.0, "{task}");
        assert!(rows(task)[1].score.value < 0.7, "{task}: {:?}", rows(task)[1].score);
        assert!(rows(task)[1].difference.unwrap().high < 0.0, "{task}");
    }
    assert!(rows("ppl")[0].score.value > 1.0);
    let kl = report.tasks.iter().find(|of| of.task == "kl").unwrap();
    assert_eq!((kl.rows[0].score.value, kl.divergence[0].top1_agreement), (0.0, 1.0));
    assert!(kl.rows[1].score.value > 0.0 && kl.divergence[1].top1_agreement < 1.0);
    // 3 items of 2 lengths, 23 of 24 tokens scored.
    assert_eq!(kl.divergence[1].positions, 6 * 23);
    assert_eq!(kl.divergence[1].by_position.len(), 23);
    let p = kl.divergence[1].percentiles;
    assert!(p.p50 <= p.p90 && p.p90 <= p.p99 && p.p99 <= p.max && p.max > 0.0);
    // The scripted cache holds 8 bytes a token.
    let (full, less) = (&rows("copy")[0], &rows("copy")[1]);
    assert_eq!((full.kv_bytes, less.kv_bytes), (8.0 * 500.0, 8.0 * 100.0));
    assert_eq!(less.kv_share, 0.2);
}

#[test]
fn conversations_are_golden_and_overlays_leave_no_trace() {
    let (run, subject) = evaluate(&["scbench:kv"], 100, &mut Journal::in_memory(), usize::MAX);
    // For each conversation: its prompt, then each reference answer with the next question, never the model's words.
    for (item, sequences) in run.tasks[0].items.iter().zip(subject.longest_of_each_prompt()) {
        let kvik_eval::item::Job::Answer { mode, turns } = &item.job else { unreachable!() };
        let mut golden = item.context.clone();
        match mode {
            Mode::MultiTurn => {
                for (index, turn) in turns.iter().enumerate() {
                    golden.extend_from_slice(&turn.question);
                    if index + 1 < turns.len() {
                        golden.extend_from_slice(&turn.reply);
                    }
                }
                assert!(sequences.iter().any(|fed| fed.starts_with(&golden)), "{}", item.id);
            }
            Mode::MultiRequest => {
                for turn in turns {
                    let asked = [&item.context[..], &turn.question].concat();
                    assert!(sequences.iter().any(|fed| fed.starts_with(&asked)), "{}", item.id);
                }
                let other = [&item.context[..], &turns[0].question, &turns[0].reply].concat();
                assert!(!sequences.iter().any(|fed| fed.starts_with(&other) && fed.len() > other.len() + 60));
            }
        }
    }
    let report = report(&run);
    let turns = report.tasks[0].breakdowns.iter().find(|breakdown| breakdown.by == "turn").unwrap();
    let expected: Vec<String> = ["multi-turn", "multi-request"]
        .iter()
        .flat_map(|mode| (1..4).map(move |t| format!("{mode} {t}")))
        .collect();
    assert_eq!(turns.values, expected);
}

#[test]
fn a_run_that_was_cut_off_goes_on_and_gives_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let tasks = ["copy", "kl", "passkey"];
    let (whole, _) = evaluate(&tasks, 100, &mut Journal::in_memory(), usize::MAX);

    let (cut, first) = evaluate(&tasks, 100, &mut Journal::open(&path).unwrap(), 18);
    assert!(!cut.finished);
    // The last line is damaged, as when the machine goes down.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 9]).unwrap();
    let (resumed, second) = evaluate(&tasks, 100, &mut Journal::open(&path).unwrap(), usize::MAX);
    assert!(resumed.finished);
    let (first, second) = (first.prompts().len(), second.prompts().len());
    // 3 tasks, 6 items, 2 variants; 17 were run before the cut, one was lost, and one full cache was run again for its
    // distributions, perhaps.
    assert_eq!(first, 17);
    assert!((20..=21).contains(&second), "{second}");

    let (mut whole, mut resumed) = (report(&whole), report(&resumed));
    for task in whole.tasks.iter_mut().chain(&mut resumed.tasks) {
        for row in &mut task.rows {
            (row.prefill_tokens_per_second, row.decode_ms_per_token) = (0.0, None);
        }
    }
    assert_eq!(whole, resumed);
    let (_, third) = evaluate(&tasks, 100, &mut Journal::open(&path).unwrap(), usize::MAX);
    assert_eq!(third.prompts().len(), 0);
    // Another seed is another evaluation.
    assert!(Journal::open(Path::new(&path)).unwrap().len() == 36);
}

#[test]
fn reports_show_what_was_measured() {
    let (run, _) =
        evaluate(&["niah", "kl", "scbench:kv", "scbench:mf"], 100, &mut Journal::in_memory(), usize::MAX);
    let report = report(&run);
    let text = report.text();
    for part in [
        "niah: ",
        "forget(window=100)",
        "by length",
        "by depth",
        "by turn",
        "by kind",
        "top-1 agreement",
        "chance",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let page = report.html();
    for part in ["<svg", "share of needles found", "accuracy by turn", "mean KL (nats) by position"] {
        assert!(page.contains(part), "{part}");
    }
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["tasks"][0]["grid"]["lengths"], serde_json::json!([400, 600]));
    assert_eq!(json["tasks"][0]["grid"]["scores"][0].as_array().unwrap().len(), 5);
}

#[test]
fn what_does_not_fit_the_context_is_refused_before_anything_runs() {
    let error = prepare(&kit(), &Choice::parse_all(&["copy"]).unwrap(), &plan(), 500).err().unwrap();
    assert!(matches!(error, EvalError::ContextTooShort { length: 600, holds: 500, .. }), "{error}");
}
