//! Prefixes that outlive the process: a folder of files, named by what they hold.
//!
//! Two threads of their own read and write; whoever serves requests only asks the index, which is in memory, hands a copy over to
//! be written, and takes what was read. Both ways are bounded: what does not fit the queue is not written. Nothing that goes wrong
//! with the folder stops a request. A full disk is reported once and tried again with the next prefix; a file that is damaged, or
//! is not what its name says, is removed, and the prefix computed again.

pub(crate) mod address;
mod entry;
mod folder;
mod index;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use self::{
    address::{Address, Chain},
    entry::{EntryError, Header},
    folder::{Create, Folder, create_new},
    index::Index,
};
use crate::lock::lock;

pub(crate) use self::index::OnDisk;

/// Bytes that wait to be written, at most; one prefix may always wait.
const QUEUE_BYTES: usize = 256 << 20;
/// Prefixes that wait to be written or read, at most.
const QUEUE_LEN: usize = 64;
/// What the threads may take to end what they are at when the store is dropped; a disk that hangs takes longer, and is left to
/// itself.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// A file's time of use is written to the disk so often at most.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

/// Where prefixes are kept, and how many bytes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvDir {
    /// A folder, which is made if it is not there.
    pub path: PathBuf,
    /// Bytes of all files in it.
    pub max_bytes: u64,
}

/// Why a folder cannot keep prefixes.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be made, read or written.
    #[error("prefixes cannot be kept in {path}: {source}; choose a folder that this user may write to")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another process keeps its prefixes in {path}: choose another folder, or stop that process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

/// What happened to prefixes on the disk since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DiskStatistics {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that they may have.
    pub max_bytes: u64,
    /// Prefixes that were written.
    pub written: u64,
    /// Prefixes that were read.
    pub read: u64,
    /// Prefixes that could not be written.
    pub failed: u64,
    /// Prefixes that were not written because too many waited.
    pub skipped: u64,
    /// Files that were damaged, or not what their names say, and were removed.
    pub damaged: u64,
}

/// Hears sentences about what went wrong and was worked around.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// A prefix as it was read: verified, and of exactly these tokens.
pub(crate) struct Loaded {
    pub(crate) tokens: Vec<u32>,
    pub(crate) image: Vec<u8>,
}

/// What waits to be done by the thread that writes.
enum Job {
    Save { file: Address, header: Header, image: Vec<u8> },
    Touch(Address),
}

struct Load {
    file: Address,
    reply: SyncSender<Option<Loaded>>,
}

/// What waits to be written.
#[derive(Default)]
struct Queue {
    files: HashSet<Address>,
    bytes: usize,
}

struct Shared {
    folder: Folder,
    max_bytes: u64,
    index: Mutex<Index>,
    queue: Mutex<Queue>,
    written_out: Condvar,
    /// What still waits is neither written nor read.
    stopping: AtomicBool,
    /// The last write failed, and somebody was told.
    failing: AtomicBool,
    counts: Counts,
    report: Report,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    read: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
    damaged: AtomicU64,
}

/// A folder of prefixes.
pub(crate) struct PrefixStore {
    shared: Arc<Shared>,
    /// `None` once the threads are to stop.
    saves: Option<SyncSender<Job>>,
    loads: Option<SyncSender<Load>>,
    threads: Vec<JoinHandle<()>>,
}

impl PrefixStore {
    /// Opens a folder and finds out what is in it. `report` hears of what goes wrong later, and `wake` is called when something was
    /// read.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be used.
    pub(crate) fn open(
        dir: &KvDir,
        report: Report,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, StoreError> {
        Self::open_with(dir, report, wake, create_new)
    }

    fn open_with(
        dir: &KvDir,
        report: Report,
        wake: Box<dyn Fn() + Send + Sync>,
        create: Create,
    ) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Folder { path: dir.path.clone(), source };
        let folder = Folder::open(&dir.path, create)?;
        let counts = Counts::default();
        let found = folder.scan(&mut |path, error| match error {
            EntryError::Io(_) => report(&format!("the prefix {} is left alone: {error}", path.display())),
            _ => {
                counts.damaged.fetch_add(1, Relaxed);
                report(&format!("removed the prefix {}: {error}", path.display()));
            }
        });
        let mut index = Index::default();
        found.map_err(failed)?.into_iter().for_each(|found| index.insert(found.chain, found.bytes));
        let shared = Arc::new(Shared {
            folder,
            max_bytes: dir.max_bytes,
            index: Mutex::new(index),
            queue: Mutex::default(),
            written_out: Condvar::new(),
            stopping: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            counts,
            report,
            wake,
        });
        shared.make_room(0);
        let (saves, jobs) = sync_channel(QUEUE_LEN);
        let (loads, wanted) = sync_channel(QUEUE_LEN);
        let mut store = Self { shared, saves: Some(saves), loads: Some(loads), threads: Vec::new() };
        let (writer, reader) = (Arc::clone(&store.shared), Arc::clone(&store.shared));
        let threads = [
            thread::Builder::new().name("prefix-write".into()).spawn(move || writer.write_all(&jobs)),
            thread::Builder::new().name("prefix-read".into()).spawn(move || reader.read_all(&wanted)),
        ];
        for thread in threads {
            store.threads.push(thread.map_err(failed)?);
        }
        Ok(store)
    }

    /// The longest prefix of a chain that is in the folder.
    pub(crate) fn longest(&self, chain: &Chain) -> Option<OnDisk> {
        lock(&self.shared.index).longest(chain)
    }

    /// True if the folder may ever hold a prefix of `bytes`.
    pub(crate) fn can_hold(&self, bytes: usize) -> bool {
        bytes as u64 <= self.shared.max_bytes
    }

    /// True if a prefix of `bytes` can be taken to be written now, and is not there or waiting.
    pub(crate) fn wants(&self, file: Address, bytes: usize) -> bool {
        let queue = lock(&self.shared.queue);
        let room = queue.files.is_empty() || queue.bytes + bytes <= QUEUE_BYTES;
        let fits = queue.files.len() < QUEUE_LEN && self.can_hold(bytes);
        room && fits && !queue.files.contains(&file) && !lock(&self.shared.index).has(file)
    }

    /// Hands a prefix over to be written. False if too much waits already.
    pub(crate) fn save(&self, chain: &Chain, seed: Address, tokens: Vec<u32>, image: Vec<u8>) -> bool {
        let (Some(file), Some(saves)) = (chain.last(), &self.saves) else { return false };
        let bytes = image.len();
        if !self.wants(file, bytes) {
            self.shared.counts.skipped.fetch_add(1, Relaxed);
            return false;
        }
        let header = Header { seed, tokens, image_bytes: bytes as u64 };
        let mut queue = lock(&self.shared.queue);
        if saves.try_send(Job::Save { file, header, image }).is_err() {
            self.shared.counts.skipped.fetch_add(1, Relaxed);
            return false;
        }
        queue.files.insert(file);
        queue.bytes += bytes;
        true
    }

    /// Says that a file's prefix was used.
    pub(crate) fn touch(&self, file: Address) {
        lock(&self.shared.index).touch(file);
        if let Some(saves) = &self.saves {
            // The order at the next start is not worth a wait.
            let _ = saves.try_send(Job::Touch(file));
        }
    }

    /// Has a file read. What comes is `None` if it was not what its name says. `None` at once if too many wait.
    pub(crate) fn load(&self, file: Address) -> Option<Receiver<Option<Loaded>>> {
        let (reply, loaded) = sync_channel(1);
        self.loads.as_ref()?.try_send(Load { file, reply }).ok()?;
        Some(loaded)
    }

    /// Forgets a file and removes it, because what it holds cannot be used.
    pub(crate) fn discard(&self, file: Address, reason: &str) {
        self.shared.discard(file, reason);
    }

    /// Waits until all that was handed over is written; false if that takes longer than `most`.
    pub(crate) fn flush(&self, most: Duration) -> bool {
        let queue = lock(&self.shared.queue);
        let waits = |queue: &mut Queue| !queue.files.is_empty();
        let waited = self.shared.written_out.wait_timeout_while(queue, most, waits);
        !waited.unwrap_or_else(|poisoned| poisoned.into_inner()).1.timed_out()
    }

    pub(crate) fn statistics(&self) -> DiskStatistics {
        let Shared { counts, index, max_bytes, .. } = &*self.shared;
        let index = lock(index);
        DiskStatistics {
            files: index.files(),
            bytes: index.bytes(),
            max_bytes: *max_bytes,
            written: counts.written.load(Relaxed),
            read: counts.read.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            skipped: counts.skipped.load(Relaxed),
            damaged: counts.damaged.load(Relaxed),
        }
    }
}

impl Drop for PrefixStore {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        (self.saves, self.loads) = (None, None);
        let end = Instant::now() + LAST_WAIT;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Shared {
    fn write_all(&self, jobs: &Receiver<Job>) {
        let mut touched: HashMap<Address, Instant> = HashMap::new();
        for job in jobs {
            match job {
                Job::Save { file, header, image } => {
                    if !self.stopping.load(Relaxed) {
                        self.write(file, &header, &image);
                    }
                    let mut queue = lock(&self.queue);
                    queue.files.remove(&file);
                    queue.bytes -= image.len();
                    self.written_out.notify_all();
                }
                Job::Touch(file) => {
                    touched.retain(|_, when| when.elapsed() < TOUCH_EVERY);
                    if touched.contains_key(&file) {
                        continue;
                    }
                    touched.insert(file, Instant::now());
                    // It may be gone by now.
                    let _ = self.folder.touch(file);
                }
            }
        }
    }

    fn write(&self, file: Address, header: &Header, image: &[u8]) {
        let bytes = header.file_bytes();
        if bytes > self.max_bytes {
            return;
        }
        self.make_room(bytes);
        match self.folder.write(file, header, image) {
            Ok(()) => {
                lock(&self.index).insert(Chain::new(header.seed, &header.tokens), bytes);
                self.counts.written.fetch_add(1, Relaxed);
                self.failing.store(false, Relaxed);
            }
            Err(error) => {
                self.counts.failed.fetch_add(1, Relaxed);
                if !self.failing.swap(true, Relaxed) {
                    let folder = self.folder.path().display();
                    (self.report)(&format!(
                        "prefixes cannot be written to {folder}: {error}; requests are served all the same"
                    ));
                }
            }
        }
    }

    /// Removes what was not used for the longest time until `bytes` more fit.
    fn make_room(&self, bytes: u64) {
        loop {
            let mut index = lock(&self.index);
            let Some(oldest) = index.oldest().filter(|_| index.bytes() + bytes > self.max_bytes) else {
                return;
            };
            index.remove(oldest);
            drop(index);
            if let Err(error) = self.folder.remove(oldest) {
                (self.report)(&format!("the prefix {oldest} cannot be removed: {error}"));
            }
        }
    }

    fn read_all(&self, wanted: &Receiver<Load>) {
        for Load { file, reply } in wanted {
            if self.stopping.load(Relaxed) {
                return;
            }
            let loaded = match self.folder.read(file) {
                Ok((header, image)) => {
                    self.counts.read.fetch_add(1, Relaxed);
                    lock(&self.index).touch(file);
                    // As for any other use.
                    let _ = self.folder.touch(file);
                    Some(Loaded { tokens: header.tokens, image })
                }
                Err(EntryError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    lock(&self.index).remove(file);
                    None
                }
                // The file may be fine, and the system out of something.
                Err(error @ EntryError::Io(_)) => {
                    (self.report)(&format!("the prefix {file} is not used this time: {error}"));
                    None
                }
                Err(error) => {
                    self.discard(file, &error.to_string());
                    None
                }
            };
            // Whoever asked may not want it any more.
            let _ = reply.send(loaded);
            (self.wake)();
        }
    }

    fn discard(&self, file: Address, reason: &str) {
        lock(&self.index).remove(file);
        self.counts.damaged.fetch_add(1, Relaxed);
        (self.report)(&format!("removed the prefix {file}: {reason}"));
        // It may be gone already.
        let _ = self.folder.remove(file);
    }
}
