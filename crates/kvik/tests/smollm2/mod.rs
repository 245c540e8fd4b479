//! SmolLM2, fetched once and kept beside the build.

use std::{path::PathBuf, process::Command, sync::OnceLock};

use kvik_engine::{Engine, EngineOptions};

/// The model's file: of `KVIK_HOME` if it is set, so that a machine that has the model does not fetch it for its tests.
pub fn path() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let pull = || {
        let home = std::env::var("KVIK_HOME")
            .unwrap_or_else(|_| concat!(env!("CARGO_TARGET_TMPDIR"), "/kvik").to_owned());
        let output = Command::new(env!("CARGO_BIN_EXE_kvik"))
            .args(["pull", "smollm2"])
            .env("KVIK_HOME", home)
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    PATH.get_or_init(pull).clone()
}

/// An engine with room for `sessions` sessions.
pub fn engine(sessions: usize) -> Engine {
    Engine::load(&path(), &EngineOptions { sessions, ..EngineOptions::default() }).unwrap()
}
