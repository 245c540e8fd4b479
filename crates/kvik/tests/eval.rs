//! `kvik eval` with the real SmolLM2: small runs, and what is said of senseless ones.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;

/// `KVIK_HOME` if it is set, so that a machine that has the models does not fetch them for its tests.
fn run(args: &[&str]) -> Output {
    let home = std::env::var("KVIK_HOME")
        .unwrap_or_else(|_| concat!(env!("CARGO_TARGET_TMPDIR"), "/kvik").to_owned());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik"));
    command
        .arg("eval")
        .args(args)
        .env("KVIK_HOME", home)
        .env_remove("KVIK_ISA")
        .env("KVIK_DATA", "no/such/folder");
    command.output().unwrap()
}

#[track_caller]
fn stdout(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn complaint(args: &[&str]) -> String {
    let output = run(args);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && !said.contains("panicked"), "{said}");
    said
}

#[test]
fn tasks_are_listed_without_a_model() {
    let text = stdout(&["--list"]);
    for name in ["ppl", "kl", "passkey", "niah", "ruler", "lambada", "gsm8k", "scbench", "copy", "recall"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is not in\n{text}");
    }
    assert!(text.contains("prefix_suffix") && text.contains("niah_multivalue"));
}

/// The model finds pass keys with the full cache, and SnapKV stays nearer to what it says than random rows do.
#[test]
fn methods_stand_beside_the_full_cache_and_their_baselines() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, page) = (dir.path().join("run.jsonl"), dir.path().join("report.html"));
    let args = [
        "--task",
        "passkey,kl",
        "--kv",
        "snapkv(budget=128)",
        "--lengths",
        "512",
        "--items",
        "3",
        "--forced",
        "12",
        "--json",
        "--resume",
        journal.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
    ];
    let first: Value = serde_json::from_str(&stdout(&args)).unwrap();
    let variants = ["full", "snapkv(budget=128)", "streaming(budget=128)", "random(budget=128)"];
    assert_eq!(first["variants"], serde_json::json!(variants));
    let row = |task: usize, kv: usize, field: &str| first["tasks"][task]["rows"][kv][field].clone();
    let score = |task, kv| row(task, kv, "score")["value"].as_f64().unwrap();
    assert!(score(0, 0) > 0.6, "{first}");
    assert!(score(1, 1) < score(1, 3), "{first}");
    // 30 layers of 3 heads of 64 dimensions, keys and values in two bytes, in tiles of 64 tokens.
    let bytes = |kv| row(0, kv, "kv_bytes").as_f64().unwrap();
    assert_eq!(bytes(0), 512.0 * 30.0 * 3.0 * 64.0 * 2.0 * 2.0);
    assert!(bytes(1) < 0.5 * bytes(0) && bytes(1) >= 128.0 / 512.0 * bytes(0), "{first}");
    assert_eq!(score(1, 0), 0.0);
    for kv in 1..4 {
        assert!(score(1, kv) > 0.0, "{first}");
    }
    let divergence = &first["tasks"][1]["divergence"];
    assert_eq!(divergence[1]["positions"], 3 * 11);
    assert!(divergence[1]["top1_agreement"].as_f64().unwrap() > 0.2);

    // Everything is in the journal now: the second run computes nothing, and says the same, its times included.
    let lines = fs::read_to_string(&journal).unwrap().lines().count();
    assert_eq!(lines, 2 * 3 * 4);
    let second: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(first, second);
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), lines);
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("<svg") && page.contains("streaming(budget=128)"));
}

/// A budget that holds everything changes nothing: neither the answers nor any distribution.
#[test]
fn a_budget_beyond_the_prompt_is_the_full_cache() {
    let args = [
        "--task",
        "scbench:many_shot,kl",
        "--kv",
        "snapkv(budget=4096)",
        "--baselines",
        "none",
        "--lengths",
        "480",
        "--items",
        "1",
        "--turns",
        "2",
        "--forced",
        "8",
        "--json",
    ];
    let report: Value = serde_json::from_str(&stdout(&args)).unwrap();
    assert_eq!(report["variants"].as_array().unwrap().len(), 2);
    for task in report["tasks"].as_array().unwrap() {
        assert_eq!(task["rows"][0]["score"], task["rows"][1]["score"], "{task}");
    }
    let kl = report["tasks"].as_array().unwrap().iter().find(|task| task["task"] == "kl").unwrap();
    assert_eq!(
        (&kl["rows"][1]["score"]["value"], &kl["divergence"][1]["top1_agreement"]),
        (&0.0.into(), &1.0.into())
    );
}

#[test]
fn senseless_requests_get_a_sentence() {
    let cases: [(&[&str], &str); 12] = [
        (&[], "--task"),
        (&["--task", "passkeys"], "tasks are ppl"),
        (&["--task", "ruler:x"], "niah_single"),
        (&["--task", "passkey", "--kv", "snapkvv"], "did you mean 'snapkv'"),
        (&["--task", "passkey", "--items", "0"], "from 1 on"),
        (&["--task", "passkey", "--lengths", "1024,x"], "from 1 on"),
        (&["--task", "niah", "--depths", "0,150"], "from 0 (start)"),
        (&["--task", "passkey", "--lengths", "9000"], "the context holds 8192"),
        (&["--task", "passkey", "--lengths", "20"], "needs at least"),
        (&["--task", "lambada", "--items", "1000"], "KVIK_DATA"),
        (&["--task", "passkey", "--html", "no/such/folder/x.html"], "a folder that exists"),
        (&["--task", "passkey", "--resume", "no/such/folder/x.jsonl"], "cannot open"),
    ];
    for (args, part) in cases {
        let said = complaint(args);
        assert!(said.contains(part), "{args:?}: {said}");
    }
}
