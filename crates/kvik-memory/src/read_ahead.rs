//! Reading blocks before they are needed, on a thread of its own.
//!
//! Blocks are wished for in batches. Whoever waits for a batch meanwhile reads those that nobody has begun: nothing is slower than
//! it would be without the thread.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use crate::{HeapBlock, SlotRead, SpillError};

/// Name of a batch, used once.
type BatchId = u64;
/// What became of the blocks of a batch, in their order.
type Blocks = Vec<Result<HeapBlock, SpillError>>;

/// Reads batches of blocks in the order in which they are wished for.
pub struct ReadAhead {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wished: Condvar,
    read: Condvar,
}

#[derive(Default)]
struct State {
    wishes: VecDeque<(BatchId, Vec<SlotRead>)>,
    /// Being read right now.
    reading: HashSet<BatchId>,
    /// Being read, but not wished for any more.
    unwanted: HashSet<BatchId>,
    done: HashMap<BatchId, Blocks>,
    closing: bool,
}

impl ReadAhead {
    /// Starts the thread. Where the system has none to give, blocks are read when they are taken.
    pub fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kvik-read-ahead".to_owned());
        Self { shared, thread: thread.spawn(move || of_thread.serve()).ok() }
    }

    /// Has batches read, each under a name that is used once.
    pub fn wish(&self, batches: impl IntoIterator<Item = (u64, Vec<SlotRead>)>) {
        self.shared.lock().wishes.extend(batches);
        self.shared.wished.notify_one();
    }

    /// The blocks of a batch that was wished for, in their order, as soon as they are there; or what went wrong with each.
    ///
    /// # Panics
    /// If nobody wished for it.
    pub fn take(&self, batch: u64) -> Vec<Result<HeapBlock, SpillError>> {
        let mut state = self.shared.lock();
        loop {
            if let Some(blocks) = state.done.remove(&batch) {
                return blocks;
            }
            state = match state.begin() {
                Some((other, reads)) => {
                    drop(state);
                    self.shared.read(other, reads);
                    self.shared.lock()
                }
                None => {
                    assert!(state.reading.contains(&batch), "nobody wished for this batch");
                    self.shared.read.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Gives a batch up.
    pub fn cancel(&self, batch: u64) {
        let mut state = self.shared.lock();
        if state.reading.contains(&batch) {
            state.unwanted.insert(batch);
        } else if state.done.remove(&batch).is_none() {
            state.wishes.retain(|(wished, _)| *wished != batch);
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closing = true;
        state.wishes.clear();
        drop(state);
        self.shared.wished.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    /// The next batch to read.
    fn begin(&mut self) -> Option<(BatchId, Vec<SlotRead>)> {
        let (batch, reads) = self.wishes.pop_front()?;
        self.reading.insert(batch);
        Some((batch, reads))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the thread does.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.closing {
            state = match state.begin() {
                Some((batch, reads)) => {
                    drop(state);
                    self.read(batch, reads);
                    self.lock()
                }
                None => self.wished.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Reads a batch whose reading was begun.
    fn read(&self, batch: BatchId, reads: Vec<SlotRead>) {
        let blocks = SlotRead::all(reads);
        let mut state = self.lock();
        state.reading.remove(&batch);
        if !state.unwanted.remove(&batch) {
            state.done.insert(batch, blocks);
            self.read.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Owner, SpillFile};

    #[test]
    fn batches_arrive_in_any_order_of_taking_and_cancelled_ones_leave_nothing() {
        let file = SpillFile::in_folder(&std::env::temp_dir()).unwrap();
        let slots: Vec<_> = (0..200u8).map(|i| file.write(&[i; 4096]).unwrap()).collect();
        let ahead = ReadAhead::start();
        for round in 0..20u64 {
            ahead.wish((0..50).map(|batch| {
                let reads = slots[4 * batch..][..4].iter();
                let reads = reads.map(|slot| slot.to_read(HeapBlock::zeroed(4096, Owner::Scratch)));
                (100 * round + batch as u64, reads.collect())
            }));
            let (taken, cancelled): (Vec<u64>, Vec<u64>) =
                (0..50).map(|i| i * 17 % 50).partition(|i| i % 3 > 0);
            cancelled.iter().for_each(|&batch| ahead.cancel(100 * round + batch));
            for batch in taken {
                for (index, block) in ahead.take(100 * round + batch).into_iter().enumerate() {
                    assert!(block.unwrap().iter().all(|&byte| byte as u64 == 4 * batch + index as u64));
                }
            }
        }
        loop {
            let state = ahead.shared.lock();
            if state.reading.is_empty() {
                assert!(state.done.is_empty() && state.unwanted.is_empty() && state.wishes.is_empty());
                break;
            }
            drop(state);
            std::thread::yield_now();
        }
    }
}
