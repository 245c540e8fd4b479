//! The official clients for Python and JavaScript, and LangChain, unchanged against the server.
//!
//! They are installed beside the build, once. Where an interpreter or the network is missing a test says so and passes;
//! with `KVIK_CLIENTS=required` it fails.

mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use support::start;

const KEY: &str = "sk-a-key-for-tests";

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn installed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name)
}

/// Runs a command; what it said if it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

/// Says why a test cannot run, or fails where it must.
fn skip(reason: &str) {
    assert!(std::env::var("KVIK_CLIENTS").as_deref() != Ok("required"), "{reason}");
    eprintln!(
        "skipped, as the client cannot be installed (KVIK_CLIENTS=required makes this an error): {reason}"
    );
}

/// Runs a script against a server with one key.
fn against_a_server(interpreter: &Path, script: &Path) {
    let server = start(&format!("api-key = [\"{KEY}\"]"));
    let base = format!("http://{}/v1", server.address);
    let said = run(Command::new(interpreter).arg(script).arg(base).arg(KEY).env("NO_COLOR", "1"));
    println!("{}", said.unwrap_or_else(|error| panic!("{error}")));
}

/// A Python with the packages, in an environment of its own.
fn python() -> Result<PathBuf, String> {
    let folder = installed("python");
    let python = folder.join("bin/python");
    let requirements = scripts().join("requirements.txt");
    let done = folder.join("installed");
    let wanted = std::fs::read(&requirements).map_err(|error| error.to_string())?;
    if std::fs::read(&done).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(pip).arg(&requirements))?;
    std::fs::write(&done, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

#[test]
fn python_clients_work_unchanged() {
    match python() {
        Ok(python) => {
            against_a_server(&python, &scripts().join("openai_client.py"));
            against_a_server(&python, &scripts().join("langchain_client.py"));
        }
        Err(reason) => skip(&reason),
    }
}

#[test]
fn the_javascript_client_works_unchanged() {
    let folder = installed("javascript");
    let install = || -> Result<(), String> {
        run(Command::new("node").arg("--version"))?;
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        // Node looks for packages beside the script.
        for file in ["package.json", "openai_client.mjs"] {
            std::fs::copy(scripts().join(file), folder.join(file)).map_err(|error| error.to_string())?;
        }
        if !folder.join("node_modules/openai").exists() {
            run(Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund"])
                .current_dir(&folder))?;
        }
        Ok(())
    };
    match install() {
        Ok(()) => against_a_server(Path::new("node"), &folder.join("openai_client.mjs")),
        Err(reason) => skip(&reason),
    }
}
