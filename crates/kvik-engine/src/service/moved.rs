//! Caches of requests that gave way, in files until their requests go on.
//!
//! A request that has to give its memory to others loses its cache. Where the service has a folder for what leaves RAM, the cache
//! is moved there and comes back when the request is admitted again, with every bit; where it has none, and whenever moving is
//! not possible or not worth it, the cache is computed again. Nothing that goes wrong with the folder stops a request.
//!
//! The thread that computes only copies: the cache into one image, and later the image into blocks. Of 32 MiB (1,024 tokens of
//! 16 layers with 8 heads of 64 dimensions) that takes 16 ms and 2 ms, the latter up to 80 ms in memory that is used for the first
//! time, on one core of the machine that this was written on; writing takes another 9 to 90 ms and reading 20 ms, as long as the
//! system's page cache takes it, and both are done by a thread of their own, so that a slow disk holds no step up. An image takes
//! RAM beyond the budget until it is written, and again from when it is read until it is copied; those that wait to be written
//! are bounded ([`MOST_WAITING_BYTES`]), and what has no room among them is computed again. Whoever is admitted before its image
//! was written gets it from memory.
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

/// Fewer tokens are computed again: a cache is of whole tiles, of 64 tokens, and less than one tile is read as a part of one step,
/// while a request whose image is read waits for the step after. From there on moving is cheaper: there and back it takes about
/// 0.1 ms a token in the measurement above, and computing one takes more than ten times as long even with small models.
pub(super) const WORTH_MOVING_TOKENS: usize = 64;
/// Bytes of images that wait to be written, at most; one may always wait.
const MOST_WAITING_BYTES: usize = 256 << 20;
/// An image that was not read after this time is computed again. A disk that is well reads hundreds of MiB meanwhile, and whoever
/// would be admitted next has to wait as long, once: a disk that hangs is not asked again until it goes on.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves images to files and back, on a thread of its own.
pub(super) struct Mover {
    tasks: Sender<Task>,
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    waiting_bytes: AtomicUsize,
    /// An image was not read in time, and nothing was read or written since: the folder is left alone.
    stuck: AtomicBool,
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
        let (waiting_bytes, stuck, failing) =
            (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { folder, waiting_bytes, stuck, failing, report, wake });
        let (tasks, received) = channel();
        let of_thread = Arc::clone(&shared);
        // Nobody waits for the thread: a disk that hangs does not hold up the end of the service.
        thread::Builder::new().name("kvik-mover".to_owned()).spawn(move || of_thread.serve(&received))?;
        Ok(Self { tasks, shared })
    }

    /// True if an image of about `bytes` can be taken now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let waiting = self.shared.waiting_bytes.load(Acquire);
        let room = waiting == 0 || waiting + bytes <= MOST_WAITING_BYTES;
        room && !self.shared.stuck.load(Relaxed)
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
        if place.file.is_none() || self.shared.stuck.load(Relaxed) {
            return Fetched::Lost;
        }
        match place.reading {
            None => {
                place.reading = Some(Instant::now());
                let _ = self.tasks.send(Task::Read(Arc::clone(&image.0)));
                Fetched::Coming
            }
            Some(since) if since.elapsed() < PATIENCE => Fetched::Coming,
            Some(_) => {
                let folder = self.shared.folder.display();
                self.shared.stuck.store(true, Relaxed);
                (self.shared.report)(&format!(
                    "the cache of request {id} was not read from {folder} within {} seconds: it is computed again, and so are \
                     others until the disk goes on",
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
            self.stuck.store(false, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A mover whose thread hangs, what waits for the thread, and what was reported.
    fn hanging() -> (Mover, Receiver<Task>, Arc<Mutex<Vec<String>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sentences = Arc::clone(&heard);
        let shared = Shared {
            folder: std::env::temp_dir(),
            waiting_bytes: AtomicUsize::new(0),
            stuck: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            report: Arc::new(move |text: &str| lock(&sentences).push(text.to_owned())),
            wake: Box::new(|| {}),
        };
        let (tasks, received) = channel();
        (Mover { tasks, shared: Arc::new(shared) }, received, heard)
    }

    #[test]
    fn images_that_wait_to_be_written_are_bounded_and_can_be_had() {
        let (mover, received, _) = hanging();
        assert!(mover.has_room(MOST_WAITING_BYTES + 1), "one may always wait");
        let image = mover.take(vec![7; 100]);
        assert!(mover.has_room(MOST_WAITING_BYTES - 100) && !mover.has_room(MOST_WAITING_BYTES - 99));
        let Fetched::Here(bytes) = mover.fetch(&image, RequestId(1)) else { panic!("it is in memory") };
        assert_eq!(*bytes, [7; 100]);
        // Nowhere else, so it stays.
        image.put_back();
        assert!(matches!(mover.fetch(&image, RequestId(1)), Fetched::Here(_)));
        // Nobody wants it when its turn comes.
        drop(image);
        let Task::Write(place) = received.recv().unwrap() else { panic!("it is to be written") };
        mover.shared.write(&place);
        assert!(lock(&place).file.is_none() && mover.has_room(MOST_WAITING_BYTES));
    }

    #[test]
    fn a_disk_that_hangs_is_left_alone_until_it_goes_on() {
        let (mover, received, heard) = hanging();
        let images = [mover.take(vec![1; 100]), mover.take(vec![2; 100])];
        for _ in &images {
            let Task::Write(place) = received.recv().unwrap() else { panic!("it is to be written") };
            mover.shared.write(&place);
        }
        let fetch = |image: usize| mover.fetch(&images[image], RequestId(image as u64));
        assert!(matches!(fetch(0), Fetched::Coming) && matches!(fetch(0), Fetched::Coming));
        lock(&images[0].0).reading = Instant::now().checked_sub(PATIENCE);
        assert!(matches!(fetch(0), Fetched::Lost) && matches!(fetch(1), Fetched::Lost));
        assert!(!mover.has_room(1) && lock(&heard).len() == 1, "{heard:?}");
        // It goes on: what was asked for once comes.
        let Mover { tasks, shared } = mover;
        drop(tasks);
        shared.serve(&received);
        let mover = Mover { tasks: channel().0, shared };
        assert!(mover.has_room(1) && matches!(mover.fetch(&images[0], RequestId(0)), Fetched::Here(_)));
        assert!(matches!(mover.fetch(&images[1], RequestId(1)), Fetched::Coming));
    }
}
