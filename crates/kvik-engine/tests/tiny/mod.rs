//! Where the tiny random models of every architecture are.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders with a `model.gguf` and the reference's logits.
pub fn folders() -> Vec<PathBuf> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-gguf");
    let mut folders: Vec<PathBuf> = fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    assert!(folders.len() >= 14, "{folders:?}");
    folders
}
