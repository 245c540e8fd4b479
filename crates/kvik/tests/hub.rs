//! Fetching from a hub that breaks, lies and refuses, on the loopback interface.

mod loopback;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvik::cache::Cache;
use kvik::models::ModelRef;
use kvik::pull::{Hub, PullError, Puller};
use loopback::{Reply, Request, Server};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn content() -> Vec<u8> {
    (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The API's answer for a repository with one GGUF file.
fn listing(bytes: usize, sum: &str) -> Reply {
    let file = json!({"rfilename": "m.Q4_K_M.gguf", "size": bytes, "lfs": {"sha256": sum, "size": bytes}});
    Reply::json(json!({"sha": "c0ffee", "siblings": [{"rfilename": "README.md", "size": 3}, file]}))
}

fn puller(home: &TempDir, server: &Server) -> Puller {
    let hub = Hub::new(&server.address, None, Duration::from_millis(1));
    Puller { cache: Cache::at(home.path()), hub, pip: None }
}

fn ensure(puller: &Puller, model: &str) -> Result<PathBuf, PullError> {
    puller.ensure(&ModelRef::parse(model).unwrap())
}

fn files_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => names.extend(files_below(&entry.path())),
            false => names.push(entry.file_name().into_string().unwrap()),
        }
    }
    names.sort();
    names
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (home, body) = (tempfile::tempdir().unwrap(), content());
    let served = body.clone();
    let mut cuts = [70_000, 50_000].into_iter();
    let server = Server::start(move |request: &Request| match request.path.as_str() {
        "/api/models/o/n?blobs=true" => listing(served.len(), &sha256(&served)),
        "/o/n/resolve/c0ffee/m.Q4_K_M.gguf" => Reply::redirect("/storage/blob"),
        "/storage/blob" => {
            let reply = Reply::file(&served, request);
            cuts.next().map_or(reply.clone(), |cut| reply.cut_at(cut))
        }
        _ => Reply::status(404),
    });
    let puller = puller(&home, &server);
    let path = ensure(&puller, "o/n").unwrap();
    assert_eq!(path, home.path().join("hub/o/n/m.Q4_K_M.gguf"));
    assert_eq!(fs::read(&path).unwrap(), body);
    let range = |start: u32| Some(format!("bytes={start}-"));
    assert_eq!(server.asked("/storage/blob"), [None, range(70_000), range(120_000)]);
    assert_eq!(files_below(&home.path().join("hub")), [".kvik.json", "m.Q4_K_M.gguf"]);

    // From now on nobody is asked: neither for the repository, nor for the file by any of its names.
    let requests = server.seen.lock().unwrap().len();
    assert_eq!(ensure(&puller, "o/n").unwrap(), path);
    assert_eq!(ensure(&puller, "o/n:m.Q4_K_M.gguf").unwrap(), path);
    assert_eq!(server.seen.lock().unwrap().len(), requests);
}

#[test]
fn the_next_run_takes_up_what_the_last_one_left() {
    let (home, body) = (tempfile::tempdir().unwrap(), content());
    let served = body.clone();
    let mut blobs = 0;
    let server = Server::start(move |request: &Request| {
        if request.path.starts_with("/api") {
            return listing(served.len(), &sha256(&served));
        }
        blobs += 1;
        match blobs {
            1 => Reply::file(&served, request).cut_at(60_000),
            2..=6 => Reply::status(503),
            _ => Reply::file(&served, request),
        }
    });
    let puller = puller(&home, &server);
    let error = ensure(&puller, "o/n").unwrap_err().to_string();
    assert!(error.contains("503") && error.contains("run the command again"), "{error}");
    assert!(!home.path().join("hub/o/n/m.Q4_K_M.gguf").exists());
    assert_eq!(fs::read(ensure(&puller, "o/n").unwrap()).unwrap(), body);
    assert_eq!(server.asked("/resolve/").last().unwrap().as_deref(), Some("bytes=60000-"));
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let (home, body) = (tempfile::tempdir().unwrap(), content());
    let served = body.clone();
    let mut first = true;
    let server = Server::start(move |request: &Request| {
        if request.path.starts_with("/api") {
            return listing(served.len(), &sha256(&served));
        }
        let whole = Reply { status: 200, body: served.clone(), ..Reply::default() };
        if std::mem::take(&mut first) { whole.cut_at(99_999) } else { whole }
    });
    assert_eq!(fs::read(ensure(&puller(&home, &server), "o/n").unwrap()).unwrap(), body);
}

#[test]
fn a_wrong_sum_is_noticed_and_nothing_is_kept() {
    let (home, body) = (tempfile::tempdir().unwrap(), content());
    let server = Server::start(move |request: &Request| match request.path.starts_with("/api") {
        true => listing(body.len(), &sha256(b"something else")),
        false => Reply::file(&body, request),
    });
    let error = ensure(&puller(&home, &server), "o/n").unwrap_err();
    assert!(matches!(&error, PullError::Checksum { what, .. } if what == "m.Q4_K_M.gguf"), "{error}");
    assert_eq!(files_below(&home.path().join("hub")), [""; 0]);
}

#[test]
fn refusals_say_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request: &Request| match request.path.as_str() {
        path if path.starts_with("/api/models?search=Qwen3-0.6") => {
            Reply::json(json!([{"id": "Qwen/Qwen3-0.6B"}, {"id": "someone/else"}]))
        }
        path if path.starts_with("/api/models/meta/") => Reply::status(403),
        path if path.starts_with("/api/models/hidden/") => Reply::status(401),
        path if path.starts_with("/api/models/o/n") => listing(10, &sha256(b"")),
        _ => Reply::status(404),
    });
    let puller = puller(&home, &server);
    let sentence = |model| ensure(&puller, model).unwrap_err().to_string();
    let missing = sentence("Qwen/Qwen3-0.6");
    assert!(missing.contains("no repository Qwen/Qwen3-0.6 (did you mean Qwen/Qwen3-0.6B?)"), "{missing}");
    let gated = sentence("meta/llama");
    assert!(gated.contains("accept them, and set HF_TOKEN") && gated.contains("/meta/llama"), "{gated}");
    let hidden = sentence("hidden/x");
    assert!(hidden.contains("set HF_TOKEN to an access token if it is private"), "{hidden}");
    let file = sentence("o/n:m.Q4_K_S.gguf");
    assert!(file.contains("has no file m.Q4_K_S.gguf (did you mean m.Q4_K_M.gguf?)"), "{file}");
}

#[test]
fn a_refused_token_is_named() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request: &Request| {
        assert_eq!(request.headers["authorization"], "Bearer secret");
        Reply::status(401)
    });
    let hub = Hub::new(&server.address, Some(" secret\n".into()), Duration::from_millis(1));
    let puller = Puller { cache: Cache::at(home.path()), hub, pip: None };
    let error = ensure(&puller, "o/n").unwrap_err().to_string();
    assert!(error.contains("refused the access token in HF_TOKEN"), "{error}");
    assert!(!error.contains("secret"));
}

#[test]
fn without_a_network_the_hub_is_named() {
    let home = tempfile::tempdir().unwrap();
    // Port 9 of the loopback interface: nobody listens.
    let hub = Hub::new("http://127.0.0.1:9", None, Duration::from_millis(1));
    let puller = Puller { cache: Cache::at(home.path()), hub, pip: None };
    let error = ensure(&puller, "o/n").unwrap_err().to_string();
    assert!(
        error.starts_with("cannot fetch o/n from http://127.0.0.1:9") && error.contains("network"),
        "{error}"
    );
}

#[test]
fn a_model_larger_than_the_disk_is_refused_before_the_first_byte() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|_: &Request| listing(1 << 60, &sha256(b"")));
    let error = ensure(&puller(&home, &server), "o/n").unwrap_err();
    assert!(matches!(error, PullError::DiskFull { needs, .. } if needs > 1 << 59), "{error}");
    assert!(server.asked("/resolve/").is_empty());
}

/// Writing to `/dev/full` fails as writing to a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_leaves_no_model_behind() {
    let (home, body) = (tempfile::tempdir().unwrap(), content());
    let sum = sha256(&body);
    let folder = home.path().join("hub/o/n");
    fs::create_dir_all(&folder).unwrap();
    let part = folder.join(format!("m.Q4_K_M.gguf.{}.part", &sum[..12]));
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let server = Server::start(move |request: &Request| match request.path.starts_with("/api") {
        true => listing(body.len(), &sum),
        false => Reply::file(&body, request),
    });
    let error = ensure(&puller(&home, &server), "o/n").unwrap_err();
    let sentence =
        format!("disk full: needs 195.31 KiB more in {}; free space or set KVIK_HOME", folder.display());
    assert!(error.to_string().starts_with(&sentence), "{error}");
    assert!(!folder.join("m.Q4_K_M.gguf").exists());
}

#[test]
fn a_safetensors_repository_becomes_a_folder() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(|request: &Request| match request.path.rsplit('/').next() {
        Some("n?blobs=true") => {
            let file = |name: &str, text: &str| json!({"rfilename": name, "size": text.len()});
            Reply::json(json!({"sha": "c0ffee", "siblings": [
                file("config.json", "{}"), file("tokenizer.json", "[]"), file("model.safetensors", "weights"),
                file("model 2#.safetensors", "more"), file("training_args.bin", "no"),
            ]}))
        }
        Some("model%202%23.safetensors") => Reply::file(b"more", request),
        Some("model.safetensors") => Reply::file(b"weights", request),
        Some("config.json") => Reply::file(b"{}", request),
        Some("tokenizer.json") => Reply::file(b"[]", request),
        _ => Reply::status(404),
    });
    let puller = puller(&home, &server);
    let folder = ensure(&puller, "o/n").unwrap();
    assert_eq!(folder, home.path().join("hub/o/n"));
    assert_eq!(
        files_below(&folder),
        [".kvik.json", "config.json", "model 2#.safetensors", "model.safetensors", "tokenizer.json"]
    );
    let models = puller.cache.hub_models().unwrap();
    assert_eq!(models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["o/n"]);
}
