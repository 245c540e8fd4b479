//! `kvik bench` from the outside, on a tiny model: what it measures, what it says of peers, what it refuses. Nothing
//! here depends on how fast anything was.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

fn tiny(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models").join(name);
    folder.to_str().expect("a path in UTF-8").to_owned()
}

/// Standard output if all went well, else standard error.
fn bench(args: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_kvik")).arg("bench").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A median between its extremes, all above zero.
fn assert_spread(spread: &Value) {
    let (min, median, max) = (number(&spread["min"]), number(&spread["median"]), number(&spread["max"]));
    assert!(0.0 < min && min <= median && median <= max, "{spread}");
}

#[test]
fn speed_reports_every_figure_with_its_limit_and_its_peers() {
    let model = tiny("llama");
    // Speeds that identify the figure: prompt, tokens and depth come back as digits.
    let peer = r#"fixed=echo '[{"n_prompt":{prompt},"n_gen":{gen},"n_depth":{depth},"avg_ts":1{prompt}{gen}{depth}}]'"#;
    let batch_peer = r#"lines=echo '{"pp":{depth},"tg":{gen},"pl":{sequences},"speed_tg":{context}}'"#;
    let report = bench(&[
        "speed",
        "--model",
        &model,
        "--threads",
        "2",
        "--runs",
        "3",
        "--json",
        "--prefill",
        "16,33",
        "--depths",
        "0,20",
        "--batch",
        "2,3",
        "--batch-depth",
        "9",
        "--gen",
        "4",
        "--peer",
        peer,
        "--peer",
        "broken=echo why >&2; exit 7",
        "--peer-batch",
        batch_peer,
    ]);
    let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
    assert_eq!((&report["model"], &report["rounds"]), (&"llama".into(), &3.into()));
    assert_eq!(report["limits"]["threads"], 2);
    for limit in
        ["read_gb_per_s_1_thread", "read_gb_per_s", "int8_gop_per_s", "bf16_gop_per_s", "f32_gop_per_s"]
    {
        assert!(number(&report["limits"][limit]) > 0.0, "{limit}");
    }

    let figures = report["figures"].as_array().unwrap();
    let of = |key: &str| figures.iter().map(|f| f["figure"][key].as_u64()).collect::<Vec<_>>();
    assert_eq!(of("prompt"), [Some(16), Some(33), None, None, None, None]);
    assert_eq!(of("depth"), [None, None, Some(0), Some(20), Some(9), Some(9)]);
    assert_eq!(of("sequences"), [None, None, Some(1), Some(1), Some(2), Some(3)]);
    for figure in figures {
        assert_spread(&figure["tokens_per_s"]);
        let (limit, share) =
            (number(&figure["roofline"]["tokens_per_s"]), number(&figure["roofline"]["share"]));
        let median = number(&figure["tokens_per_s"]["median"]);
        assert!((share * limit / median - 1.0).abs() < 1e-9, "{figure}");
        assert!(figure["roofline"]["bound"] == "memory" || figure["roofline"]["bound"] == "compute");
    }

    let answers = [11600.0, 13300.0, 1040.0, 10420.0];
    for (figure, answer) in figures.iter().zip(answers) {
        let [fixed, broken] = figure["peers"].as_array().unwrap().as_slice() else { panic!("two peers") };
        assert_eq!((&fixed["name"], number(&fixed["tokens_per_s"]["median"])), (&"fixed".into(), answer));
        assert_spread(&fixed["ratio"]);
        let ratio = number(&figure["tokens_per_s"]["median"]) / answer;
        assert!((number(&fixed["ratio"]["median"]) / ratio - 1.0).abs() < 1e-9);
        assert_eq!((&broken["name"], broken.get("ratio")), (&"broken".into(), None));
        assert_eq!(broken["error"], "the command ended with exit status: 7: why");
    }
    for (figure, sequences) in figures[4..].iter().zip([2.0, 3.0]) {
        assert_eq!(number(&figure["peers"][0]["tokens_per_s"]["median"]), sequences * 13.0);
    }
}

#[test]
fn speed_as_a_table_says_what_was_shortened_and_what_failed() {
    let table = bench(&[
        "speed",
        "--model",
        &tiny("gemma3"),
        "--runs",
        "1",
        "--prefill",
        "none",
        "--depths",
        "5000",
        "--batch",
        "none",
        "--gen",
        "2",
        "--markdown",
        "--peer",
        "talker=echo hello",
    ]);
    let table = table.unwrap();
    assert!(table.contains("\n| gemma3") && table.contains("\n| decode at "), "{table}");
    assert!(table.contains("- decode at 5000 goes beyond the model's context of"), "{table}");
    assert!(table.contains("- talker at decode at "), "{table}");
    assert!(table.contains("but 'hello'"), "{table}");
}

#[test]
fn kernels_report_times_and_shares() {
    let report = bench(&[
        "kernels",
        "--isa",
        "scalar",
        "--threads",
        "1",
        "--runs",
        "1",
        "--only",
        "Q4_0 1536x768, 1 row",
        "--json",
    ]);
    let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
    let [report] = report.as_array().unwrap().as_slice() else { panic!("one instruction set") };
    assert_eq!(report["limits"]["isa"], "scalar");
    let names: Vec<_> = report["kernels"].as_array().unwrap().iter().map(|kernel| &kernel["name"]).collect();
    assert_eq!(names, ["matmul Q4_0 1536x768, 1 row"]);
    let kernel = &report["kernels"][0];
    assert_spread(&kernel["us"]);
    // 18 bytes for 32 numbers, and two operations for each in each of two planes.
    let (bytes, operations) = (1536.0 * 768.0 * 18.0 / 32.0, 1536.0 * 768.0 * 4.0);
    let ratio = number(&kernel["gop_per_s"]) / number(&kernel["gb_per_s"]);
    assert!((ratio / (operations / bytes) - 1.0).abs() < 1e-9, "{kernel}");
}

#[test]
fn attention_over_other_caches_is_set_against_that_in_bf16() {
    let what = "attention 4 heads of 256 on 1, 1 of 8192 tokens";
    let args = ["kernels", "--threads", "1", "--runs", "1", "--only", what, "--json"];
    let report: Value = serde_json::from_str(&bench(&args).unwrap()).unwrap();
    let kernels = report[0]["kernels"].as_array().unwrap();
    let names: Vec<_> = kernels.iter().map(|kernel| kernel["name"].as_str().unwrap()).collect();
    let stored = ["", " in directions", " in affine(bits=4,group=32)", " in affine(bits=2,group=32)"];
    assert_eq!(names, stored.map(|stored| format!("{what}{stored}")));
    assert!(kernels[0]["times_bf16"].is_null());
    for kernel in &kernels[1..] {
        let times = number(&kernels[0]["us"]["median"]) / number(&kernel["us"]["median"]);
        assert!((number(&kernel["times_bf16"]["median"]) / times - 1.0).abs() < 1e-9, "{kernel}");
    }
}

#[test]
fn wrong_arguments_are_answered_with_what_is_right() {
    let model = tiny("llama");
    for (args, answer) in [
        (vec!["speed", "--prefill", "12,many"], "'many' is no number"),
        (vec!["speed", "--peer", "llama-bench"], "a peer is given as NAME=CMD"),
        (vec!["speed", "--threads", "0"], "0 is not in 1..=1024"),
        (vec!["speed", "--runs", "0"], "0 is not in 1.."),
        (vec!["speed", "--json", "--markdown"], "cannot be used with"),
        (
            vec!["speed", "--model", &model, "--prefill", "none", "--depths", "none", "--batch", "none"],
            "nothing to measure",
        ),
        (vec!["kernels", "--isa", "sse9"], "unknown instruction set 'sse9'"),
        (vec!["kernels", "--only", "no such kernel"], "no kernel's name contains 'no such kernel'"),
    ] {
        let error = bench(&args).unwrap_err();
        assert!(error.contains(answer), "{args:?}: {error}");
    }
}
