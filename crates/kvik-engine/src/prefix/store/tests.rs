//! The folder: what was written is found again, and nothing else is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::Ordering::SeqCst,
};

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// What was reported.
type Heard = Arc<Mutex<Vec<String>>>;

fn open_with(path: &Path, max_bytes: u64, create: Create) -> (PrefixStore, Heard) {
    let heard = Heard::default();
    let report = Arc::clone(&heard);
    let dir = KvDir { path: path.to_owned(), max_bytes };
    let report: Report = Arc::new(move |text: &str| lock(&report).push(text.to_owned()));
    (PrefixStore::open_with(&dir, report, Box::new(|| {}), create).unwrap(), heard)
}

fn open(path: &Path, max_bytes: u64) -> (PrefixStore, Heard) {
    open_with(path, max_bytes, create_new)
}

const SEED: Address = Address([9; 32]);

fn tokens(kind: u32, links: usize) -> Vec<u32> {
    (0..64 * links as u32).map(|i| i * 7 + kind).collect()
}

fn chain(kind: u32, links: usize) -> Chain {
    Chain::new(SEED, &tokens(kind, links))
}

/// Hands a prefix over whose image is a thousand bytes for every link.
fn save(store: &PrefixStore, kind: u32, links: usize) -> bool {
    let saved = store.save(&chain(kind, links), SEED, tokens(kind, links), image(kind, links));
    assert!(store.flush(WAIT));
    saved
}

fn image(kind: u32, links: usize) -> Vec<u8> {
    (0..1000 * links).map(|i| (i * 31 + kind as usize) as u8).collect()
}

fn load(store: &PrefixStore, kind: u32, links: usize) -> Option<Loaded> {
    let file = store.longest(&chain(kind, links))?.file;
    store.load(file).unwrap().recv_timeout(WAIT).unwrap()
}

fn files(path: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> =
        fs::read_dir(path).unwrap().map(name).filter(|name| name != "kvik.lock").collect();
    names.sort();
    names
}

fn file_of(path: &Path, kind: u32, links: usize) -> PathBuf {
    path.join(format!("{}.kvprefix", chain(kind, links).last().unwrap()))
}

#[test]
fn prefixes_outlive_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder");
    {
        let (store, _) = open(&path, 1 << 20);
        assert!(save(&store, 1, 5) && save(&store, 2, 3));
        assert!(!save(&store, 1, 5), "it is there already");
        let second =
            PrefixStore::open(&KvDir { path: path.clone(), max_bytes: 1 }, Arc::new(|_| {}), Box::new(|| {}));
        assert!(matches!(second.err(), Some(StoreError::InUse { .. })), "the folder belongs to one process");
    }
    let (store, heard) = open(&path, 1 << 20);
    let found = store.longest(&chain(1, 4)).unwrap();
    assert_eq!((found.tokens, found.file_tokens), (4 * 64, 5 * 64));
    for (kind, links) in [(1, 5), (2, 3)] {
        let loaded = load(&store, kind, links).unwrap();
        assert_eq!((loaded.tokens, loaded.image), (tokens(kind, links), image(kind, links)));
        let mode = fs::metadata(file_of(&path, kind, links)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "what people wrote is for the user alone");
    }
    assert!(store.longest(&chain(3, 2)).is_none());
    let statistics = store.statistics();
    assert_eq!((statistics.files, statistics.read, statistics.damaged), (2, 2, 0));
    assert_eq!(*lock(&heard), [""; 0]);
}

#[test]
fn damaged_and_foreign_files_are_misses_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    {
        let (store, _) = open(path, 1 << 20);
        assert!((0..6).all(|kind| save(&store, kind, 4)));
        // Damaged while the process runs: found out when it is read.
        let mut bytes = fs::read(file_of(path, 0, 4)).unwrap();
        bytes[2500] ^= 1;
        fs::write(file_of(path, 0, 4), bytes).unwrap();
        assert!(load(&store, 0, 4).is_none() && store.longest(&chain(0, 4)).is_none());
        assert!(!file_of(path, 0, 4).exists());
        fs::remove_file(file_of(path, 5, 4)).unwrap();
        assert!(load(&store, 5, 4).is_none() && store.longest(&chain(5, 4)).is_none());
        assert_eq!(store.statistics().damaged, 1);
    }
    let bytes = fs::read(file_of(path, 1, 4)).unwrap();
    fs::write(file_of(path, 1, 4), &bytes[..bytes.len() - 1]).unwrap();
    fs::rename(file_of(path, 2, 4), file_of(path, 7, 4)).unwrap();
    fs::write(file_of(path, 8, 1), "something else").unwrap();
    fs::write(file_of(path, 9, 1).with_extension("partial"), &bytes[..100]).unwrap();
    // What is not named like a prefix is none of its business, and a link is no file.
    fs::write(path.join("notes.txt"), "mine").unwrap();
    fs::write(path.join("notes.partial"), "mine").unwrap();
    std::os::unix::fs::symlink("notes.txt", file_of(path, 10, 1)).unwrap();
    let (store, heard) = open(path, 1 << 20);
    let mut expected: Vec<String> = [file_of(path, 3, 4), file_of(path, 4, 4), file_of(path, 10, 1)]
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .chain(["notes.txt".to_owned(), "notes.partial".to_owned()])
        .collect();
    expected.sort();
    assert_eq!(files(path), expected);
    assert_eq!(lock(&heard).len(), 3, "{heard:?}");
    for kind in [1, 2, 7, 8, 9, 10] {
        assert!(store.longest(&chain(kind, 4)).is_none());
    }
    assert!(load(&store, 3, 4).is_some() && load(&store, 4, 4).is_some());
}

#[test]
fn the_folder_stays_within_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sum = || files(path).iter().map(|name| fs::metadata(path.join(name)).unwrap().len()).sum::<u64>();
    let most = 10_000;
    {
        let (store, _) = open(path, most);
        for kind in 0..12 {
            assert!(save(&store, kind, 2));
            if kind > 0 {
                store.touch(chain(0, 2).last().unwrap());
            }
            assert!(sum() <= most && store.statistics().bytes == sum());
        }
        assert!(load(&store, 0, 2).is_some(), "it is used all the time");
        assert!(load(&store, 11, 2).is_some() && load(&store, 1, 2).is_none());
        assert!(!save(&store, 20, 11), "larger than all");
    }
    // The order of use outlives the process.
    let (store, _) = open(path, 3_000);
    assert_eq!(store.statistics().files, 1);
    assert!(load(&store, 11, 2).is_some());
}

static FULL: AtomicBool = AtomicBool::new(true);

/// A file on a device without room, while `FULL`.
fn sometimes_full(path: &Path) -> io::Result<File> {
    if FULL.load(SeqCst) { File::options().write(true).open("/dev/full") } else { create_new(path) }
}

#[test]
fn a_full_disk_is_reported_once_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, heard) = open_with(folder.path(), 1 << 20, sometimes_full);
    assert!((0..5).all(|kind| save(&store, kind, 2)), "nobody waits for the disk, or hears of it");
    assert_eq!((store.statistics().failed, store.statistics().files), (5, 0));
    assert_eq!(lock(&heard).len(), 1);
    assert!(lock(&heard)[0].contains("No space left"), "{heard:?}");
    assert_eq!(files(folder.path()), [""; 0], "nothing is left half written");
    FULL.store(false, SeqCst);
    assert!(save(&store, 0, 2) && load(&store, 0, 2).is_some());
    FULL.store(true, SeqCst);
    assert!(save(&store, 1, 2));
    assert_eq!(lock(&heard).len(), 2, "it had room in between");
}

#[test]
fn a_slow_disk_holds_nobody_up() {
    static GO: AtomicBool = AtomicBool::new(false);
    fn slow(path: &Path) -> io::Result<File> {
        while !GO.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        create_new(path)
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = open_with(folder.path(), 1 << 30, slow);
    let started = Instant::now();
    let taken = (0..200).filter(|&kind| store.save(&chain(kind, 2), SEED, tokens(kind, 2), image(kind, 2)));
    let taken = taken.count();
    assert!((1..=QUEUE_LEN + 1).contains(&taken), "{taken}");
    assert!(started.elapsed() < WAIT / 2);
    assert_eq!(store.statistics().skipped as usize, 200 - taken);
    assert!(!store.flush(Duration::from_millis(5)));
    GO.store(true, SeqCst);
    assert!(store.flush(WAIT));
    assert_eq!(store.statistics().files, taken);
}
