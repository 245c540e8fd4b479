//! `kvik trace`, `kvik replay` and `kvik bench serve` from the outside, against a server whose latencies are known.

#[path = "../../kvik-eval/tests/fake_server/mod.rs"]
mod fake_server;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fake_server::{FakeServer, Manners};
use kvik_engine::{Engine, EngineOptions, Service, ServiceOptions};
use kvik_eval::{
    client::{Api, EngineTarget, HttpTarget},
    trace::prompts::Material,
};
use serde_json::Value;

/// Standard output if all went well, else standard error.
fn kvik(args: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_kvik")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// A server that lives as long as the runtime.
fn serve(manners: Manners) -> (tokio::runtime::Runtime, String, FakeServer) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, server) = runtime.block_on(fake_server::start(manners));
    (runtime, address, server)
}

fn fast() -> Manners {
    Manners { first: Duration::from_millis(30), next: Duration::from_millis(3), ..Manners::default() }
}

fn data(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/traces").join(name);
    path.to_str().unwrap().to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_trace_is_replayed_on_time_with_what_it_shares() {
    let (_runtime, address, server) = serve(fast());
    let folder = tempfile::tempdir().unwrap();
    let page = path(folder.path(), "report.html");
    let report = kvik(&[
        "replay",
        &data("mooncake-conversation-head.jsonl.zst"),
        "--url",
        &address,
        "--limit",
        "40",
        "--lengths",
        "0.02",
        "--scale",
        "6",
        "--context",
        "200",
        "--slo-ttft",
        "2000",
        "--slo-tpot",
        "500",
        "--html",
        &page,
        "--json",
    ]);
    let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
    assert_eq!(
        (&report["requests"], &report["complete"], &report["finished"]),
        (&40.into(), &40.into(), &true.into())
    );
    // The first 40 requests come within 9 seconds of the trace; prompts of 200 tokens at most begin with a shared block
    // of 10 tokens.
    assert!(number(&report["ttft"]["p50"]) >= 28.0 && number(&report["itl"]["p50"]) >= 2.5, "{report}");
    assert!(number(&report["lateness"]["p99"]) < 100.0);
    assert_eq!(report["levels"]["kept"], 1.0);
    assert!(number(&report["levels"]["goodput_requests_per_second"]) > 0.0);
    assert!(report["tokens"]["completion"] == report["tokens"]["wanted"]);
    let html = fs::read_to_string(page).unwrap();
    assert!(html.matches("<svg").count() >= 5 && html.contains("To the first token, ms"));
    let seen = server.seen.lock().unwrap();
    let first: Vec<&[Value]> =
        seen.bodies.iter().map(|body| &body["prompt"].as_array().unwrap()[..10]).collect();
    assert!(first.iter().all(|tokens| tokens == &first[0]), "the system prompt's block is the same in all");
    let prompts = seen.bodies.iter().filter_map(|body| body["prompt"].as_array()?.get(10..20));
    let second: std::collections::HashSet<String> = prompts.map(|tokens| format!("{tokens:?}")).collect();
    assert!(second.len() > 20, "and the next one is not: {}", second.len());
}

/// A model that fits in a file of 100 KiB.
fn tiny() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf/llama/model.gguf");
    path.to_str().unwrap().to_owned()
}

/// `kvik serve` with that model, ended with the test.
struct Kvik(Child);

impl Drop for Kvik {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve_tiny() -> (Kvik, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_kvik"))
        .args(["serve", "--listen", "127.0.0.1:0", "--kv-memory", "64MiB", "--ctx", "600", "--threads", "1"])
        .args(["--model", &tiny()])
        .stderr(Stdio::piped())
        .spawn();
    let mut server = Kvik(child.unwrap());
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.strip_prefix("http://")?.split('/').next()?.to_owned()));
    // What it logs from here on must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (server, format!("http://{}", address.expect("it listens")))
}

#[test]
fn an_engine_is_asked_as_its_server_is() {
    let (_server, address) = serve_tiny();
    let trace = data("mooncake-conversation-head.jsonl.zst");
    // Blocks of 512 tokens become blocks of 64, which Kvik shares.
    let load = ["--limit", "24", "--lengths", "0.125", "--scale", "6", "--context", "600", "--json"];
    let replay = |target: &[&str]| -> Value {
        let report = kvik(&[&["replay", &trace], &load[..], target].concat());
        serde_json::from_str(&report.unwrap()).unwrap()
    };
    let tiny = tiny();
    let engine =
        replay(&["--engine", "--model", &tiny, "--ctx", "600", "--threads", "1", "--kv-memory", "64MiB"]);
    let server = replay(&["--url", &address]);
    for report in [&engine, &server] {
        assert_eq!((&report["requests"], &report["complete"]), (&24.into(), &24.into()), "{report}");
        assert_eq!(report["tokens"]["completion"], report["tokens"]["wanted"]);
        // All prompts begin with the same block, which only those know not that come before the first answer.
        assert!(number(&report["tokens"]["cached"]) >= 64.0 * 10.0, "{}", report["tokens"]);
        assert_eq!(report["server"]["preemptions"], 0.0);
        assert!(number(&report["server"]["most_kv_share"]) > 0.0);
        assert!(number(&report["ttft"]["p50"]) > 0.0 && number(&report["itl"]["p50"]) > 0.0);
    }
    for figure in ["prompt", "completion", "wanted"] {
        assert_eq!(engine["tokens"][figure], server["tokens"][figure], "{figure}");
    }
    assert_eq!(engine["load"], server["load"]);
    assert_eq!((&engine["target"], &engine["model"]), (&"the engine itself".into(), &server["model"]));

    // Prompts are the same because what they are made of is.
    let text = "It was the best of times, <s> it was the worst of times";
    let http = HttpTarget {
        endpoint: address.parse().unwrap(),
        api: Api::Completions,
        model: "model".into(),
        extensions: true,
        fields: serde_json::Map::new(),
        limit: Duration::from_secs(60),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lent = runtime.block_on(http.tokenize(text)).unwrap();
    let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    let service = Service::start(
        Engine::load(Path::new(&tiny), &options).unwrap(),
        ServiceOptions { kv_budget_bytes: Some(1 << 20), ..ServiceOptions::default() },
    );
    let target = EngineTarget {
        service: service.unwrap().into(),
        pipeline: Default::default(),
        whole: true,
        limit: Duration::from_secs(60),
    };
    let Ok(Material::Tokens(own)) = target.material(text) else { panic!("tokens") };
    assert!(own == lent && own.len() > 10, "{own:?} {lent:?}");
}

#[test]
fn bursts_are_set_against_a_poisson_process_on_one_engine() {
    let folder = tempfile::tempdir().unwrap();
    let (burst, even) = (path(folder.path(), "burst.csv"), path(folder.path(), "poisson.csv"));
    let generate = ["trace", "generate", "burstgpt-perf", "--requests", "60", "--rate", "12", "--seed", "3"];
    kvik(&[&generate[..], &["--out", &burst]].concat()).unwrap();
    kvik(&[&generate[..], &["--gaps", "poisson", "--out", &even]].concat()).unwrap();
    let show = |path: &str| -> Value {
        serde_json::from_str(&kvik(&["trace", "show", path, "--json"]).unwrap()).unwrap()
    };
    let (bursts, poisson) = (show(&burst), show(&even));
    assert_eq!(
        (&bursts["input_tokens"], &bursts["output_tokens"]),
        (&poisson["input_tokens"], &poisson["output_tokens"])
    );
    // To the milliseconds of the file.
    assert!((number(&bursts["span_s"]) - number(&poisson["span_s"])).abs() < 0.002, "{bursts} {poisson}");
    // The gaps' coefficient of variation is 1.41 for a shape of 0.5, and 1 for a Poisson process; its deviation is 0.13.
    assert!(number(&bursts["gap_cv"]) > 1.2 && number(&poisson["gap_cv"]) < 1.2, "{bursts} {poisson}");
    for trace in [&burst, &even] {
        let model = tiny();
        let report = kvik(&[
            "replay",
            trace,
            "--engine",
            "--model",
            &model,
            "--threads",
            "1",
            "--kv-memory",
            "16MiB",
            "--max-running",
            "4",
            "--step-tokens",
            "64",
            "--context",
            "64",
            "--scale",
            "2",
            "--kv",
            "kivi(bits=4)",
            "--json",
        ]);
        let report: Value = serde_json::from_str(&report.unwrap()).unwrap();
        assert_eq!((&report["complete"], &report["server"]["preemptions"]), (&60.into(), &0.0.into()));
        assert!(number(&report["server"]["most_running"]) <= 4.0, "{}", report["server"]);
        assert!(
            report["notes"].to_string().contains("1 threads, pipeline kivi(bits=4"),
            "{}",
            report["notes"]
        );
    }
}

#[test]
fn the_environment_of_an_engine_counts_only_where_one_is_wanted() {
    let (_runtime, address, _server) = serve(fast());
    let azure = data("azure-llm-2023-conv-head.csv.zst");
    let replay = |target: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_kvik"))
            .args(["replay", &azure, "--limit", "2", "--scale", "9", "--lengths", "0.01"])
            .args(target)
            .env("KVIK_MAX_RUNNING", "many")
            .output()
            .unwrap()
    };
    assert!(replay(&["--url", &address]).status.success());
    let output = replay(&["--engine", "--model", &tiny()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("'many' for '--max-running <N>'"), "{said}");
    assert!(replay(&["--engine", "--model", &tiny(), "--max-running", "2"]).status.success());
}

#[test]
fn a_hyphen_is_standard_output() {
    let azure = data("azure-llm-2023-conv-head.csv.zst");
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_kvik")).args(args).current_dir(folder.path()).output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (_, csv) = in_folder(&["trace", "generate", "--requests", "5", "--rate", "1", "--out", "-"]);
    assert!(csv.starts_with("Timestamp,Model,") && csv.lines().count() == 6, "{csv}");
    let (_, model) = in_folder(&["trace", "fit", &azure, "--out", "-"]);
    let model: Value = serde_json::from_str(&model).unwrap();
    assert_eq!(model["version"], 1);
    let (succeeded, said) = in_folder(&["trace", "fit", &azure, "--out", "-", "--json", "-"]);
    assert!(!succeeded && said.contains("only one result can go to standard output"), "{said}");
    let (_runtime, address, _server) = serve(fast());
    let replay = ["replay", &azure, "--url", &address, "--limit", "3", "--scale", "9", "--lengths", "0.01"];
    let (_, page) = in_folder(&[&replay[..], &["--html", "-"]].concat());
    assert!(page.to_lowercase().starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{page}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file is called -");
}

#[test]
fn a_twin_is_fitted_generated_shown_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, csv) = (path(folder.path(), "model.json"), path(folder.path(), "twin.csv"));
    let said = kvik(&["trace", "fit", &data("azure-llm-2023-conv-head.csv.zst"), "--out", &model]).unwrap();
    assert!(said.contains("gap between arrivals, s") && said.contains("Poisson's"), "{said}");
    let generate =
        ["trace", "generate", &model, "--requests", "30", "--rate", "20", "--seed", "5", "--out", &csv];
    let said = kvik(&generate).unwrap();
    assert!(said.contains("30 in "), "{said}");
    let shown: Value = serde_json::from_str(&kvik(&["trace", "show", &csv, "--json"]).unwrap()).unwrap();
    assert_eq!(shown["requests"], 30);
    let first = fs::read(&csv).unwrap();
    kvik(&generate).unwrap();
    assert_eq!(fs::read(&csv).unwrap(), first, "the same seed gives the same file");
    kvik(&["trace", "generate", "--requests", "10", "--rate", "5", "--out", &csv]).unwrap();
    assert!(fs::read_to_string(&csv).unwrap().starts_with("Timestamp,Model,Request tokens,"));

    let (_runtime, address, _server) = serve(fast());
    let text =
        kvik(&["replay", &csv, "--url", &address, "--lengths", "0.01", "--rate", "50", "--text"]).unwrap();
    assert!(text.contains("open loop") && text.contains("note: prompts are text"), "{text}");
}

#[test]
fn failures_are_counted_and_make_the_exit_code() {
    let (_runtime, address, _server) = serve(Manners { trouble: true, ..fast() });
    let azure = data("azure-llm-2023-code.csv.zst");
    let args = [
        "replay",
        &azure,
        "--url",
        &address,
        "--limit",
        "8",
        "--scale",
        "20",
        "--lengths",
        "0.05",
        "--timeout",
        "3",
    ];
    let error = kvik(&args).unwrap_err();
    assert!(error.contains(" of 8 requests have no whole answer, the first of them overloaded"), "{error}");
}

#[test]
fn servers_are_put_under_the_same_load_in_turns() {
    let (_slow, slow, slow_server) = serve(Manners { next: Duration::from_millis(30), ..fast() });
    let (_fast, fast, fast_server) = serve(fast());
    let args = [
        "bench",
        "serve",
        "--url",
        &fast,
        "--peer",
        &format!("slow={slow}"),
        "--users",
        "2,4",
        "--requests",
        "8",
        "--prompt",
        "20-60",
        "--answer",
        "10",
        "--shared",
        "32",
        "--runs",
        "2",
    ];
    let report: Value = serde_json::from_str(&kvik(&[&args[..], &["--json"]].concat()).unwrap()).unwrap();
    let levels = report["levels"].as_array().unwrap();
    assert_eq!(levels.len(), 2);
    for level in levels {
        let [first, peer] = level["servers"].as_array().unwrap().as_slice() else { panic!("two servers") };
        let round = |server: &Value| server["rounds"][1].clone();
        assert_eq!((round(first)["complete"].clone(), round(peer)["complete"].clone()), (8.into(), 8.into()));
        // Shared tokens are in the cache since the request that does not count.
        assert_eq!(round(first)["tokens"]["cached"], 8 * 32);
        assert_eq!(round(first)["tokens"]["prompt"], round(peer)["tokens"]["prompt"]);
        assert!(number(&round(peer)["itl"]["p50"]) >= 29.0);
    }
    let (fast_seen, slow_seen) = (fast_server.seen.lock().unwrap(), slow_server.seen.lock().unwrap());
    assert_eq!((fast_seen.bodies.len(), slow_seen.bodies.len()), (33, 33));
    assert!(fast_seen.most_under_way == 4 && slow_seen.most_under_way == 4);
    let prompt = |body: &Value| body["prompt"].to_string();
    let different: std::collections::HashSet<String> = fast_seen.bodies.iter().map(prompt).collect();
    assert_eq!(different.len(), 33, "no prompt is sent twice");
    drop((fast_seen, slow_seen));

    let table = kvik(&[
        "bench",
        "serve",
        "--url",
        &fast,
        "--rate",
        "40",
        "--alpha",
        "0.5",
        "--requests",
        "20",
        "--prompt",
        "20",
        "--answer",
        "4",
    ])
    .unwrap();
    assert!(table.contains("40/s, alpha 0.5") && table.contains("ITL p50 ms"), "{table}");
}

#[test]
fn wrong_arguments_are_answered_with_what_is_right() {
    let azure = data("azure-llm-2023-code.csv.zst");
    for (args, answer) in [
        (vec!["replay", &azure, "--url", "https://x"], "give the http:// address behind the proxy"),
        (vec!["replay", &azure, "--url", "http://127.0.0.1:9"], "cannot connect to http://127.0.0.1:9"),
        (vec!["replay", &azure, "--scale", "0"], "a number above 0 is needed"),
        (vec!["replay", &azure, "--fields", "[1]"], "a JSON object is needed"),
        (vec!["replay", &azure, "--kv-memory", "1GiB"], "--engine"),
        (vec!["replay", &azure, "--engine", "--kv-memory", "much"], "a number of bytes such as 512MiB"),
        (vec!["replay", &azure, "--engine", "--url", "http://x"], "cannot be used with"),
        (vec!["replay", &azure, "--engine", "--kv", "kiwi"], "did you mean 'kivi'?"),
        (vec!["replay", &azure, "--engine", "--max-running", "0"], "max-running is 0"),
        (vec!["replay", &azure, "--start", "99999"], "--start, --duration and --thin leave none"),
        (vec!["replay", "Cargo.toml"], "is in no format that is known"),
        (vec!["trace", "show", "no/such/trace"], "cannot read no/such/trace"),
        (vec!["trace", "generate", "Cargo.toml", "--out", "x.csv"], "is no model of a workload"),
        (vec!["trace", "generate", "--out", "no/such/folder/x.csv"], "give a file in a folder that exists"),
        (vec!["bench", "serve", "--prompt", "9-3"], "a range such as 200-1500"),
        (vec!["bench", "serve", "--peer", "x"], "a peer is given as NAME=URL"),
    ] {
        let error = kvik(&args).unwrap_err();
        assert!(error.contains(answer), "{args:?}: {error}");
    }
}
