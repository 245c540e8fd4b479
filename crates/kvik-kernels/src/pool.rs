//! A thread pool for regions that last microseconds.
//!
//! A decode step is some hundreds of short parallel regions, one after the other. A pool that sleeps between them
//! pays two system calls per region; this one spins: the caller opens a gate, the workers see it in their cache and
//! join, and when the work is handed out the caller closes the gate and waits for those who joined, and only for those.
//! A worker that the system has taken off its core is therefore not missed: a crowded machine slows a region down, it
//! does not stop it.
//!
//! A worker that saw no job for [`SPIN_LIMIT`] turns offers its core to others, and after [`YIELD_LIMIT`] more turns it
//! parks until the next job, so that an idle machine does not burn. The caller takes part as thread 0; a pool of one
//! thread runs everything inline.

use std::{
    cell::UnsafeCell,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle, Thread},
};

use crate::disjoint::Disjoint;

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
    /// The number of the current job, whether it still takes workers, and how many it has: see [`Gate`].
    gate: Padded<AtomicU64>,
    /// Workers that have left the current job.
    finished: Padded<AtomicU64>,
    job: UnsafeCell<Option<Job>>,
    /// Per thread: how many of its pieces of the current job were taken.
    taken: Vec<Padded<AtomicUsize>>,
    /// Per worker: it is parked, or about to be, and needs a wake-up.
    parked: Vec<Padded<AtomicBool>>,
    /// A worker's call of the current job panicked.
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// The gate's word: 32 bits of job number, the open bit, 31 bits of workers that joined.
struct Gate;

impl Gate {
    const OPEN: u64 = 1 << 31;
    const JOINED: u64 = Self::OPEN - 1;

    fn number(word: u64) -> u64 {
        word >> 32
    }

    /// The word of the job after `word`'s, open and without workers.
    fn next(word: u64) -> u64 {
        (Self::number(word) + 1) << 32 | Self::OPEN
    }
}

/// Keeps what one thread writes off the cache lines that others spin on.
#[repr(align(128))]
struct Padded<T>(T);

// SAFETY: `job` is written only by the thread that holds `region`, while the gate is closed and everybody who joined has
// left, and read by workers only after they joined through the gate, which was opened after the write.
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
            gate: Padded(AtomicU64::new(0)),
            finished: Padded(AtomicU64::new(0)),
            job: UnsafeCell::new(None),
            taken: (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect(),
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

    /// Runs `task(thread)` on the calling thread (0) and, at the same time, on the workers (from 1) that are free to
    /// come before the caller's own call returns; returns when all of them have left it. `task` must therefore hand out
    /// its work piece by piece, as [`Self::for_each_piece`] does, and be done when any one call returns.
    ///
    /// Not reentrant: `task` must not call `run` on the same pool.
    ///
    /// # Panics
    /// If `task` panics on any thread.
    pub fn run(&self, task: impl Fn(usize) + Sync) {
        self.run_after(|| (), task);
    }

    /// As [`Self::run`], after `prepare`, which nothing of another region sees.
    fn run_after(&self, prepare: impl FnOnce(), task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            prepare();
            return task(0);
        }
        let _region = self.region.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let erased: *const (dyn Fn(usize) + Sync + '_) = &task;
        // SAFETY: only the lifetime is erased. `CloseGate` below waits for every worker that joined, also when the
        // closure panics on this thread, so no worker outlives it.
        let job: Job = unsafe { std::mem::transmute(erased) };
        // SAFETY: the region lock is held, the gate is closed and nobody is behind it, so nobody else touches `job`.
        unsafe { *self.shared.job.get() = Some(job) };
        self.shared.finished.0.store(0, Relaxed);
        prepare();
        // A region whose caller panicked has not looked at this.
        self.shared.panicked.store(false, Relaxed);
        self.shared.gate.0.store(Gate::next(self.shared.gate.0.load(Relaxed)), SeqCst);
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked) {
            if parked.0.load(SeqCst) {
                worker.thread.unpark();
            }
        }
        let close = CloseGate(&self.shared);
        task(0);
        drop(close);
        if self.shared.panicked.load(Relaxed) {
            panic!("a worker thread panicked in a parallel region");
        }
    }

    /// Splits `0..items` into pieces of at most `grain` and runs `task(piece)` on all threads. Each takes an even share of pieces
    /// that follow each other, so that what it reads may come closer across their ends; a thread that has come to the end of its
    /// own takes those that others have left, so that a thread that was taken off its core is not waited for.
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
        let (pieces, threads) = (items.div_ceil(grain), self.threads());
        // One counter for all would go from core to core with every piece, in regions of some microseconds.
        let taken = &self.shared.taken;
        let reset = || taken.iter().for_each(|taken| taken.0.store(0, Relaxed));
        self.run_after(reset, |thread| {
            for owner in (thread..threads).chain(0..thread) {
                let (first, end) = (pieces * owner / threads, pieces * (owner + 1) / threads);
                loop {
                    let piece = first + taken[owner].0.fetch_add(1, Relaxed);
                    if piece >= end {
                        break;
                    }
                    task(thread, piece * grain..((piece + 1) * grain).min(items));
                }
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
        if cols > 0 {
            self.for_each_row_in(data, cols, PIECE_ELEMENTS.div_ceil(cols), task);
        }
    }

    /// As [`Self::for_each_row`], in pieces of `grain` rows: for rows that take long.
    ///
    /// # Panics
    /// If `data` is no whole number of rows.
    pub fn for_each_row_in<T: Send>(
        &self,
        data: &mut [T],
        cols: usize,
        grain: usize,
        task: impl Fn(usize, &mut [T]) + Sync,
    ) {
        assert!(data.len().is_multiple_of(cols));
        let rows = data.len() / cols;
        let data = Disjoint::new(data);
        self.for_each_piece(rows, grain, |piece| {
            for row in piece {
                // SAFETY: pieces are disjoint, so every row is handed out once.
                task(row, unsafe { data.slice(row * cols..(row + 1) * cols) });
            }
        });
    }
}

/// Ends a job in `drop`, so that its closure outlives the workers' use of it on a panic too.
struct CloseGate<'a>(&'a Shared);

impl Drop for CloseGate<'_> {
    fn drop(&mut self) {
        let joined = self.0.gate.0.fetch_and(!Gate::OPEN, AcqRel) & Gate::JOINED;
        let mut turns = 0u32;
        while self.0.finished.0.load(Acquire) != joined {
            turns = turns.saturating_add(1);
            if turns < SPIN_LIMIT { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let word = self.next_job(seen, index);
            if self.stop.load(Relaxed) {
                return;
            }
            seen = Gate::number(word);
            if !self.join(word) {
                continue;
            }
            // SAFETY: the gate was opened after `job` was written, and the caller keeps the closure alive and `job`
            // unchanged until `finished` counts this worker, which happens below, after the call.
            let job = unsafe { (*self.job.get()).expect("an open gate has a job behind it") };
            // SAFETY: as above.
            let task = unsafe { &*job };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(index))).is_err() {
                self.panicked.store(true, Relaxed);
            }
            self.finished.0.fetch_add(1, Release);
        }
    }

    /// Joins the job of `word`; false if its gate has closed.
    fn join(&self, mut word: u64) -> bool {
        let number = Gate::number(word);
        loop {
            if word & Gate::OPEN == 0 || Gate::number(word) != number {
                return false;
            }
            match self.gate.0.compare_exchange_weak(word, word + 1, AcqRel, Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Waits until the gate belongs to another job than number `seen`, and returns its word.
    fn next_job(&self, seen: u64, index: usize) -> u64 {
        let mut turns = 0u32;
        loop {
            let word = self.gate.0.load(Acquire);
            if Gate::number(word) != seen {
                return word;
            }
            turns += 1;
            if turns < SPIN_LIMIT {
                std::hint::spin_loop();
            } else if turns < SPIN_LIMIT + YIELD_LIMIT {
                thread::yield_now();
            } else {
                let parked = &self.parked[index - 1].0;
                parked.store(true, SeqCst);
                while Gate::number(self.gate.0.load(SeqCst)) == seen {
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
        self.shared.gate.0.store(Gate::next(self.shared.gate.0.load(Relaxed)) & !Gate::OPEN, SeqCst);
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

    /// Waits until `count` threads are inside at once: only then have all of them joined.
    fn meet(pool: &ThreadPool, count: usize) -> bool {
        let inside = AtomicUsize::new(0);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        pool.run(|_| {
            inside.fetch_add(1, SeqCst);
            while inside.load(SeqCst) < count && std::time::Instant::now() < deadline {
                thread::yield_now();
            }
        });
        inside.into_inner() == count
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = ThreadPool::new(3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(meet(&pool, 3));
        }
    }

    #[test]
    fn short_regions_follow_each_other_without_losing_any() {
        let pool = ThreadPool::new(3);
        let mut sum = 0;
        for round in 0..20_000 {
            let added = AtomicUsize::new(0);
            pool.for_each_piece(4, 1, |piece| {
                added.fetch_add(piece.start + round, Relaxed);
            });
            sum += added.into_inner() - 4 * round;
        }
        assert_eq!(sum, 20_000 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = ThreadPool::new(2);
        for panicking in [&[0][..], &[1], &[0, 1]] {
            let (inside, both) = (AtomicUsize::new(0), 2);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(|thread| {
                    inside.fetch_add(1, SeqCst);
                    while inside.load(SeqCst) < both {
                        thread::yield_now();
                    }
                    assert!(!panicking.contains(&thread));
                });
            }));
            assert!(result.is_err());
            assert!(meet(&pool, 2));
        }
    }
}
