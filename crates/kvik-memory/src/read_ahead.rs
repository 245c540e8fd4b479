//! Reading blocks before they are needed, on a thread of its own.
//!
//! Whoever waits for a block meanwhile reads those that nobody has begun: nothing is slower than it would be without the
//! thread.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use crate::{HeapBlock, SlotReader, SpillError};

/// A block to be read: what to call it, from where, and the space for it.
pub struct Wish {
    /// Name, used once.
    pub id: u64,
    /// From where.
    pub slot: SlotReader,
    /// As long as the block that was written.
    pub space: HeapBlock,
}

/// Reads blocks in the order in which they are wished for.
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
    wishes: VecDeque<Wish>,
    /// Being read right now.
    reading: HashSet<u64>,
    /// Being read, but not wished for any more.
    unwanted: HashSet<u64>,
    done: HashMap<u64, Result<HeapBlock, SpillError>>,
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

    /// Has blocks read.
    pub fn wish(&self, wishes: Vec<Wish>) {
        self.shared.lock().wishes.extend(wishes);
        self.shared.wished.notify_one();
    }

    /// A block that was wished for, as soon as it is there.
    ///
    /// # Errors
    /// What went wrong with the reading.
    ///
    /// # Panics
    /// If nobody wished for it.
    pub fn take(&self, id: u64) -> Result<HeapBlock, SpillError> {
        let mut state = self.shared.lock();
        loop {
            if let Some(block) = state.done.remove(&id) {
                return block;
            }
            state = match state.begin() {
                Some(wish) => {
                    drop(state);
                    self.shared.read(wish);
                    self.shared.lock()
                }
                None => {
                    assert!(state.reading.contains(&id), "nobody wished for this block");
                    self.shared.read.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    /// Gives a wish up.
    pub fn cancel(&self, id: u64) {
        let mut state = self.shared.lock();
        if state.done.remove(&id).is_some() {
            return;
        }
        if state.reading.contains(&id) {
            state.unwanted.insert(id);
        } else if let Some(index) = state.wishes.iter().position(|wish| wish.id == id) {
            state.wishes.remove(index);
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
    /// The next block to read.
    fn begin(&mut self) -> Option<Wish> {
        let wish = self.wishes.pop_front()?;
        self.reading.insert(wish.id);
        Some(wish)
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
                Some(wish) => {
                    drop(state);
                    self.read(wish);
                    self.lock()
                }
                None => self.wished.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Reads a block whose reading was begun.
    fn read(&self, Wish { id, slot, mut space }: Wish) {
        let result = slot.read(&mut space).map(|()| space);
        let mut state = self.lock();
        state.reading.remove(&id);
        if !state.unwanted.remove(&id) {
            state.done.insert(id, result);
            self.read.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Owner, SpillFile};

    #[test]
    fn blocks_arrive_in_any_order_of_taking_and_cancelled_ones_leave_nothing() {
        let file = SpillFile::in_folder(&std::env::temp_dir()).unwrap();
        let slots: Vec<_> = (0..200u8).map(|i| file.write(&[i; 4096]).unwrap()).collect();
        let ahead = ReadAhead::start();
        let wish = |round: u64, i: usize| Wish {
            id: round * 1000 + i as u64,
            slot: slots[i].reader(),
            space: HeapBlock::zeroed(4096, Owner::Scratch),
        };
        for round in 0..20u64 {
            ahead.wish((0..200).map(|i| wish(round, i)).collect());
            let (taken, cancelled): (Vec<usize>, Vec<usize>) =
                (0..200).map(|i| i * 77 % 200).partition(|i| i % 3 > 0);
            cancelled.iter().for_each(|&i| ahead.cancel(round * 1000 + i as u64));
            for i in taken {
                let block = ahead.take(round * 1000 + i as u64).unwrap();
                assert!(block.iter().all(|&byte| byte == i as u8));
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
