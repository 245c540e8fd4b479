//! Mutexes whose content is whole at any time.

use std::sync::{Mutex, MutexGuard};

/// Locks a mutex, whether or not a thread that held it has panicked: for what nobody can leave half written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
