//! A thread pool for regions that last microseconds.
//!
//! A decode step is some hundreds of short parallel regions, one after the other. A pool that sleeps between them
//! pays two system calls per region; this one spins: the caller publishes a job by raising an epoch, the workers see
//! it in their cache, and the caller waits on a counter. A worker that saw no job for [`SPIN_LIMIT`] turns offers its
//! core to others, and after [`YIELD_LIMIT`] more turns it parks until the next job, so that an idle or crowded
//! machine does not burn.
//!
//! The caller takes part as thread 0; a pool of one thread runs everything inline.

use std::{
    cell::UnsafeCell,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle, Thread},
};

/// Turns of the fast spin: about 30 µs, longer than the serial stretches between two regions of a decode step.
const SPIN_LIMIT: u32 = 2_000;
/// Turns that yield the core before a worker parks: a few milliseconds on a quiet machine.
const YIELD_LIMIT: u32 = 2_000;

/// Threads that run one region at a time, spinning in between.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held while a region runs: regions started from several threads queue up here.
    region: Mutex<()>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Raised by one for each job; workers run the job when it changes.
    epoch: Padded<AtomicUsize>,
    /// Workers that have not finished the current job.
    running: Padded<AtomicUsize>,
    job: UnsafeCell<Option<Job>>,
    /// Per worker: it is parked, or about to be, and needs a wake-up.
    parked: Vec<Padded<AtomicBool>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Keeps what one thread writes off the cache lines that others spin on.
#[repr(align(128))]
struct Padded<T>(T);

// SAFETY: `job` is written only by the thread that holds `region`, while no worker runs (running == 0), and read by
// workers only after they saw the epoch change that was published with Release after the write.
unsafe impl Sync for Shared {}
// SAFETY: the raw job pointer is only dereferenced while the caller of `run` keeps the closure alive.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Panics
    /// If `threads` is 0 or the system refuses to start a thread.
    pub fn new(threads: usize) -> Self {
        assert!(threads > 0, "a pool needs at least one thread");
        let shared = Arc::new(Shared {
            epoch: Padded(AtomicUsize::new(0)),
            running: Padded(AtomicUsize::new(0)),
            job: UnsafeCell::new(None),
            parked: (1..threads).map(|_| Padded(AtomicBool::new(false))).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers = (1..threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("kvik-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("the system refused to start a worker thread");
                Worker { thread: handle.thread().clone(), handle: Some(handle) }
            })
            .collect();
        Self { shared, workers, region: Mutex::new(()) }
    }

    /// A pool with one thread for each core that this process may use.
    pub fn with_all_cores() -> Self {
        Self::new(thread::available_parallelism().map_or(1, usize::from))
    }

    /// Threads of the pool, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(thread)` once on every thread (`0..threads`) and returns when all have finished.
    ///
    /// Not reentrant: `task` must not call `run` on the same pool.
    ///
    /// # Panics
    /// If `task` panics on any thread.
    pub fn run(&self, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            return task(0);
        }
        let _region = self.region.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let erased: *const (dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: only the lifetime is erased. `wait` below returns after every worker has left the closure, also
        // when the closure panics on this thread, so no worker outlives it.
        let job: Job = unsafe { std::mem::transmute(erased) };
        // SAFETY: the region lock is held and no worker runs, so nobody else touches `job`.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.running.0.store(self.workers.len(), Relaxed);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked) {
            if parked.0.load(SeqCst) {
                worker.thread.unpark();
            }
        }
        let finish = WaitForWorkers(&self.shared);
        task(0);
        drop(finish);
        if self.shared.panicked.swap(false, Relaxed) {
            panic!("a worker thread panicked in a parallel region");
        }
    }

    /// Splits `0..items` into pieces of at most `grain` and runs `task(piece)` on all threads; each piece goes to
    /// whichever thread is free next.
    pub fn for_each_piece(&self, items: usize, grain: usize, task: impl Fn(Range<usize>) + Sync) {
        self.for_each_piece_on_thread(items, grain, |_, piece| task(piece));
    }

    /// As [`Self::for_each_piece`], with the number of the thread that runs the piece: the index of its own scratch.
    pub fn for_each_piece_on_thread(
        &self,
        items: usize,
        grain: usize,
        task: impl Fn(usize, Range<usize>) + Sync,
    ) {
        let grain = grain.max(1);
        if self.workers.is_empty() || items <= grain {
            if items > 0 {
                task(0, 0..items);
            }
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(|thread| {
            loop {
                let start = next.fetch_add(grain, Relaxed);
                if start >= items {
                    break;
                }
                task(thread, start..(start + grain).min(items));
            }
        });
    }

    /// Runs `task(index, row)` on every row of `data` (`[rows, cols]`), on all threads when there is enough to do.
    ///
    /// # Panics
    /// If `data` is no whole number of rows.
    pub fn for_each_row<T: Send>(&self, data: &mut [T], cols: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        /// A piece of so many elements is worth handing to another thread.
        const PIECE_ELEMENTS: usize = 4096;
        if cols == 0 {
            return;
        }
        assert!(data.len().is_multiple_of(cols));
        let rows = data.len() / cols;
        let start = SendPtr(data.as_mut_ptr());
        self.for_each_piece(rows, PIECE_ELEMENTS.div_ceil(cols), |piece| {
            let start = &start;
            for row in piece {
                // SAFETY: `row < rows`, so the range lies in `data`; pieces are disjoint, so nobody else has it.
                task(row, unsafe { std::slice::from_raw_parts_mut(start.0.add(row * cols), cols) });
            }
        });
    }
}

/// A pointer that threads may share because each uses a part of its own.
struct SendPtr<T>(*mut T);

// SAFETY: see the only user, `ThreadPool::for_each_row`.
unsafe impl<T: Send> Sync for SendPtr<T> {}

/// Waits in `drop`, so that the job's closure outlives the workers' use of it on a panic too.
struct WaitForWorkers<'a>(&'a Shared);

impl Drop for WaitForWorkers<'_> {
    fn drop(&mut self) {
        let mut turns = 0u32;
        while self.0.running.0.load(Acquire) != 0 {
            turns = turns.saturating_add(1);
            if turns < SPIN_LIMIT { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.next_epoch(seen, index);
            if self.stop.load(Relaxed) {
                return;
            }
            // SAFETY: the epoch was published after `job`, and the caller keeps the closure alive until `running`
            // has fallen to zero, which happens below, after the call.
            let job = unsafe { (*self.job.get()).expect("an epoch comes with a job") };
            // SAFETY: as above.
            let task = unsafe { &*job };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(index))).is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.running.0.fetch_sub(1, Release);
        }
    }

    fn next_epoch(&self, seen: usize, index: usize) -> usize {
        let mut turns = 0u32;
        loop {
            let epoch = self.epoch.0.load(Acquire);
            if epoch != seen {
                return epoch;
            }
            turns += 1;
            if turns < SPIN_LIMIT {
                std::hint::spin_loop();
            } else if turns < SPIN_LIMIT + YIELD_LIMIT {
                thread::yield_now();
            } else {
                let parked = &self.parked[index - 1].0;
                parked.store(true, SeqCst);
                while self.epoch.0.load(SeqCst) == seen {
                    thread::park();
                }
                parked.store(false, SeqCst);
                turns = 0;
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            let pool = ThreadPool::new(threads);
            for items in [0, 1, 5, 1000] {
                let done: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each_piece(items, 3, |range| {
                    for i in range {
                        done[i].fetch_add(1, Relaxed);
                    }
                });
                assert!(
                    done.iter().all(|count| count.load(Relaxed) == 1),
                    "{threads} threads, {items} items"
                );
            }
        }
    }

    #[test]
    fn every_row_is_visited_with_its_index() {
        let pool = ThreadPool::new(2);
        for (rows, cols) in [(0, 3), (1, 5), (3000, 7)] {
            let mut data = vec![0usize; rows * cols];
            pool.for_each_row(&mut data, cols, |index, row| row.fill(index + 1));
            assert!(data.iter().enumerate().all(|(i, &value)| value == i / cols + 1));
        }
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = ThreadPool::new(3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(50));
            let count = AtomicUsize::new(0);
            pool.run(|_| {
                count.fetch_add(1, Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        for panicking in [0, 1] {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(|thread| assert_ne!(thread, panicking));
            }));
            assert!(result.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(|_| {
            count.fetch_add(1, Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }
}
