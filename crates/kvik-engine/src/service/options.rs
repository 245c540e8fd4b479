//! How a service runs.

use crate::{
    error::EngineError,
    prefix::{KvDir, PrefixSharing, check_block_tokens},
};
use std::path::PathBuf;

/// How a service runs; the default takes half of the memory that is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Tokens of one forward pass: those that are decoded come first, chunks of prompts fill the rest.
    pub step_tokens: usize,
    /// Sequences that are computed at the same time; fewer than `step_tokens`.
    pub max_running: usize,
    /// Requests that may wait; more are turned away.
    pub max_waiting: usize,
    /// Bytes of RAM for keys and values; `None` is half of what the machine has free.
    pub kv_budget_bytes: Option<usize>,
    /// Prefixes are shared in blocks of so many tokens; a multiple of 64.
    pub block_tokens: usize,
    /// Where prefixes outlive the process, if anywhere.
    pub kv_dir: Option<KvDir>,
    /// Where the caches of requests that have to give their memory to others wait, if anywhere: without it they are computed again.
    /// The files have no names and are as large as what was moved. A folder that lies in RAM (tmpfs) spends what is to be saved.
    pub spill_dir: Option<PathBuf>,
    /// Who begins with whose prefixes.
    pub prefix_sharing: PrefixSharing,
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            step_tokens: 512,
            max_running: 64,
            max_waiting: 1024,
            kv_budget_bytes: None,
            block_tokens: 64,
            kv_dir: None,
            spill_dir: None,
            prefix_sharing: PrefixSharing::default(),
        }
    }
}

/// What is taken where nobody can say how much memory is free.
const UNKNOWN_FREE_BYTES: usize = 2 << 30;

impl ServiceOptions {
    /// Checks what can be checked without a model, so that none is fetched in vain. The service does it as well.
    ///
    /// # Errors
    /// [`EngineError`] says which option cannot be.
    pub fn check(&self) -> Result<(), EngineError> {
        Ok(check_block_tokens(self.block_tokens)?)
    }

    /// Bytes of RAM for keys and values.
    pub(super) fn budget_bytes(&self) -> usize {
        self.kv_budget_bytes.unwrap_or_else(|| free_bytes().unwrap_or(UNKNOWN_FREE_BYTES) / 2)
    }
}

/// What the machine has free, or the control group of the process if that is less.
fn free_bytes() -> Option<usize> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? * 1024;
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    let in_group = group.map_or(usize::MAX, |(max, current)| max.saturating_sub(current));
    Some(available.min(in_group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_tiles() {
        let check = |block_tokens| ServiceOptions { block_tokens, ..Default::default() }.check();
        assert!(check(64).is_ok() && check(192).is_ok());
        for block_tokens in [0, 1, 63, 96] {
            let error = check(block_tokens).unwrap_err().to_string();
            assert!(error.contains("multiple of 64"), "{error}");
        }
    }

    #[test]
    fn free_memory_is_that_of_a_machine() {
        let free = free_bytes().unwrap();
        assert!((1 << 20..1 << 50).contains(&free), "{free}");
        assert_eq!(ServiceOptions { kv_budget_bytes: Some(5), ..Default::default() }.budget_bytes(), 5);
    }
}
