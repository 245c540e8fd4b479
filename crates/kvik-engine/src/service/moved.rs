//! Caches of requests that gave way, in files until their requests go on.
//!
//! A request that has to give its memory to others loses its cache. Where the service has a folder for what leaves RAM, the cache
//! is moved there and comes back when the request is admitted again, with every bit; where it has none, and whenever moving is
//! not possible or not worth it, the cache is computed again. Nothing that goes wrong with the folder stops a request.
//!
//! The thread that computes only copies: the cache into one image, and later the image into blocks, some ten milliseconds for a
//! hundred MiB. A thread of its own writes and reads. An image takes RAM beyond the budget until it is written, and again from
//! when it is read until it is copied; those that wait to be written are bounded ([`MOST_WAITING_BYTES`]), and what has no room
//! among them is computed again. Whoever is admitted before its image was written gets it from memory.
//!
//! Each image has a file of its own without a name. It goes with the request, however that ends, and with the process.

use super::request::RequestId;
use crate::{lock::lock, prefix::Report};
use kvik_kv::{Slot, SpillError, SpillFile};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Fewer tokens are computed again: an image is of whole tiles, of 64 tokens, and less than one tile is a part of one step, while
/// a request whose image is read waits for the step after.
pub(super) const WORTH_MOVING_TOKENS: usize = 64;
/// Bytes of images that wait to be written, at most; one may always wait.
const MOST_WAITING_BYTES: usize = 256 << 20;
/// An image that was not read after this time is computed again. A disk that is well reads hundreds of MiB meanwhile, and whoever
/// would be admitted next has to wait as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves images to files and back, on a thread of its own.
pub(super) struct Mover {
    tasks: Sender<Task>,
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    waiting_bytes: AtomicUsize,
    /// The last image could not be written, and somebody was told.
    failing: AtomicBool,
    report: Report,
    wake: Box<dyn Fn() + Send + Sync>,
}

enum Task {
    Write(Arc<Mutex<Place>>),
    Read(Arc<Mutex<Place>>),
}

/// Where an image is; it may be in both places, or lost.
#[derive(Default)]
struct Place {
    memory: Option<Arc<Vec<u8>>>,
    file: Option<Arc<Slot>>,
    /// It is being read since then.
    reading: Option<Instant>,
    bytes: usize,
}

/// The cache of a request that waits.
pub(super) struct Moved {
    pub(super) image: Image,
    /// Tokens that it has.
    pub(super) tokens: usize,
    /// Bytes of RAM that it takes again, and those that it took at most.
    pub(super) bytes: usize,
    pub(super) peak_bytes: usize,
    /// As [`SequenceCache::own_tokens`](kvik_kv::SequenceCache::own_tokens).
    pub(super) own_tokens: Option<usize>,
    /// Where reading the prompt pauses, as for a sequence that runs.
    pub(super) pauses: Vec<usize>,
}

/// A cache as bytes, wherever they are.
pub(super) struct Image(Arc<Mutex<Place>>);

/// What became of an image.
pub(super) enum Fetched {
    /// It is here.
    Here(Arc<Vec<u8>>),
    /// It is being read; the loop is woken when it is here.
    Coming,
    /// It is not to be had.
    Lost,
}

impl Mover {
    /// Starts the thread. `report` hears sentences about what goes wrong, and `wake` is called when an image was read.
    ///
    /// # Errors
    /// What the system says if there is no thread to be had.
    pub(super) fn start(
        folder: PathBuf,
        report: Report,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let (waiting_bytes, failing) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { folder, waiting_bytes, failing, report, wake });
        let (tasks, received) = channel();
        let of_thread = Arc::clone(&shared);
        // Nobody waits for the thread: a disk that hangs does not hold up the end of the service.
        thread::Builder::new().name("kvik-mover".to_owned()).spawn(move || of_thread.serve(&received))?;
        Ok(Self { tasks, shared })
    }

    /// True if an image of about `bytes` can be taken now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.shared.waiting_bytes.load(Acquire);
        waiting == 0 || waiting + bytes <= MOST_WAITING_BYTES
    }

    /// Takes an image, to be written.
    pub(super) fn take(&self, image: Vec<u8>) -> Image {
        let place = Place { bytes: image.len(), memory: Some(Arc::new(image)), ..Place::default() };
        self.shared.waiting_bytes.fetch_add(place.bytes, AcqRel);
        let place = Arc::new(Mutex::new(place));
        // Without the thread, the image stays in memory until it is wanted.
        let _ = self.tasks.send(Task::Write(Arc::clone(&place)));
        Image(place)
    }

    /// The image, if it is in memory; otherwise it is read from now on. `id` is whose it is.
    pub(super) fn fetch(&self, image: &Image, id: RequestId) -> Fetched {
        let mut place = lock(&image.0);
        if let Some(image) = &place.memory {
            return Fetched::Here(Arc::clone(image));
        }
        let Some(_) = place.file else { return Fetched::Lost };
        match place.reading {
            None => {
                place.reading = Some(Instant::now());
                let _ = self.tasks.send(Task::Read(Arc::clone(&image.0)));
                Fetched::Coming
            }
            Some(since) if since.elapsed() < PATIENCE => Fetched::Coming,
            Some(_) => {
                let folder = self.shared.folder.display();
                (self.shared.report)(&format!(
                    "the cache of request {id} was not read from {folder} within {} seconds: it is computed again",
                    PATIENCE.as_secs()
                ));
                Fetched::Lost
            }
        }
    }
}

impl Image {
    /// Frees the memory of an image that a file has too: there is no room for the cache yet.
    pub(super) fn put_back(&self) {
        let mut place = lock(&self.0);
        if place.file.is_some() {
            place.memory = None;
        }
    }

    /// Bytes of files that it takes.
    pub(super) fn file_bytes(&self) -> usize {
        lock(&self.0).file.as_ref().map_or(0, |slot| slot.file_bytes() as usize)
    }
}

impl Shared {
    fn serve(&self, tasks: &Receiver<Task>) {
        for task in tasks {
            match task {
                Task::Write(place) => self.write(&place),
                Task::Read(place) => {
                    self.read(&place);
                    (self.wake)();
                }
            }
        }
    }

    fn write(&self, place: &Arc<Mutex<Place>>) {
        let (image, bytes) = {
            let place = lock(place);
            (place.memory.clone(), place.bytes)
        };
        // Nobody else may want it any more.
        if let (Some(image), true) = (image, Arc::strong_count(place) > 1) {
            let written = SpillFile::in_folder(&self.folder).and_then(|file| file.write(&image));
            self.tell(written.as_ref().err());
            let mut place = lock(place);
            // What could not be written is computed again: it must not take RAM for as long as its request waits.
            (place.memory, place.file) = (None, written.ok().map(Arc::new));
        }
        self.waiting_bytes.fetch_sub(bytes, AcqRel);
    }

    fn read(&self, place: &Arc<Mutex<Place>>) {
        let (file, bytes) = {
            let place = lock(place);
            (place.file.clone(), place.bytes)
        };
        let Some(file) = file.filter(|_| Arc::strong_count(place) > 1) else { return };
        let mut image = vec![0; bytes];
        let read = file.read(&mut image);
        if let Err(error) = &read {
            (self.report)(&format!("a request that gave its memory to others is computed again: {error}"));
        }
        let mut place = lock(place);
        place.reading = None;
        match read {
            Ok(()) => place.memory = Some(Arc::new(image)),
            Err(_) => place.file = None,
        }
    }

    /// Reports that the folder cannot be written to, once until it can again.
    fn tell(&self, failure: Option<&SpillError>) {
        let Some(error) = failure else { return self.failing.store(false, Relaxed) };
        if !self.failing.swap(true, Relaxed) {
            (self.report)(&format!("requests that give their memory to others are computed again: {error}"));
        }
    }
}
