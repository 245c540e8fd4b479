//! `kvik-train duo` on a tiny model: what it writes, what it refuses, and how it stops.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kvik_kv::Calibration;
use kvik_model::Checkpoint;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama")
}

/// `kvik-train duo` with texts that a tokenizer of characters can make.
fn duo(steps: &str, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik-train"));
    command.arg("duo").arg("--model").arg(model()).arg("--out").arg(out);
    command.args(["--steps", steps, "--keys", "1", "--words", "1", "--tokens", "160", "--min-tokens", "140"]);
    command
}

fn settings(file: &Calibration) -> serde_json::Value {
    serde_json::from_str(&file.header.settings).unwrap()
}

#[test]
fn the_file_says_of_which_model_and_how_and_gates_have_moved() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gates.safetensors");
    let said = duo("8", &out).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let file = Calibration::read(&out).unwrap();
    file.check("duo", &Checkpoint::open(&model()).unwrap().fingerprint()).unwrap();
    assert_eq!((settings(&file)["steps"].as_u64(), settings(&file)["done"].as_u64()), (Some(8), Some(8)));
    let gates = file.numbers("gates", &[2, 2]).unwrap();
    assert!(gates.iter().all(|gate| (0.0..1.0).contains(gate)), "{gates:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    // The same command gives the same gates, with the same header.
    let again = dir.path().join("again.safetensors");
    assert!(duo("8", &again).output().unwrap().status.success());
    let again = Calibration::read(&again).unwrap();
    assert_eq!(again.header, file.header);
    assert_eq!(again.numbers("gates", &[2, 2]).unwrap(), gates);
}

#[test]
fn ctrl_c_writes_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gates.safetensors");
    let mut run = duo("1000000", &out).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("of 1000000") && first.contains("mean gate 1.0000"), "{first}");
    let interrupt = Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let steps = 1 + lines.map_while(Result::ok).filter(|line| line.starts_with("step")).count();
    assert!(run.wait().unwrap().success());
    let file = Calibration::read(&out).unwrap();
    assert_eq!(settings(&file)["done"].as_u64(), Some(steps as u64));
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gates.safetensors");
    let refused = |command: &mut Command| {
        let said = command.output().unwrap();
        assert!(!said.status.success());
        String::from_utf8(said.stderr).unwrap()
    };
    let error = refused(duo("8", &out).args(["--recent", "200"]));
    assert!(error.contains("nothing is out of reach of a streaming head"), "{error}");
    let error = refused(&mut duo("8", &dir.path().join("no/gates")));
    assert!(error.contains("there is no folder"), "{error}");
    let error = refused(duo("8", &out).args(["--data", "no/such/text"]));
    assert!(error.contains("cannot read no/such/text"), "{error}");
    let mut other = Command::new(env!("CARGO_BIN_EXE_kvik-train"));
    other.arg("duo").arg("--model").arg(model().join("../qwen3")).arg("--out").arg(&out);
    other.args(["--keys", "1", "--words", "1"]);
    let error = refused(&mut other);
    assert!(error.contains("architecture is Qwen3"), "{error}");
    assert!(!out.exists());
}
