//! What serving asks of prefixes: one value for the tree in memory and the folder on a disk.
//!
//! In the order of a request's life: [`prepare`](PrefixCache::prepare) when it arrives, which may have a prefix read from the disk
//! meanwhile; [`begin`](PrefixCache::begin) when it may be admitted, and [`admitted`](PrefixCache::admitted) when it is;
//! [`keep`](PrefixCache::keep) after a chunk of its prompt, at the latest before the prompt's end lets methods rewrite it.
//! [`idle`](PrefixCache::idle) when there is nothing to compute. None of them waits for a disk, and a request waits for one only
//! so long ([`PATIENCE`]).
//!
//! What is shared is exact: rows that no method has rewritten, of tokens that were read as a prompt. Whoever begins with them
//! computes the same bits as without. Pipelines whose methods wait for the end of the prompt begin with exact prefixes and
//! contribute them; others (those that look at all queries, cut while they read, or move blocks to files) do neither.
//!
//! A prefix goes to the disk when requests have begun to share it, and otherwise when there is time; not if nearly all of it is
//! there already, as part of another.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use kvik_kv::{CacheError, Held, KvStore, Pipeline, SequenceCache};
use kvik_model::Tokenizer;
use sha2::{Digest, Sha256};

use super::{
    eviction::LeastRecentlyUsed,
    sharing::{PrefixSharing, Scope},
    store::{
        DiskStatistics, KvDir, Loaded, OnDisk, PrefixStore, Report, StoreError,
        address::{Address, Chain, Origin},
    },
    tree::{NodeId, PrefixLock, PrefixTree, PrefixTreeStatus},
};

/// A shorter prefix is not worth the copy of the blocks that it ends in.
const LEAST_TOKENS: usize = 16;
/// What is read from a disk, or written to it, is to be more than this part of the whole file: computing a token takes at least
/// ten times as long as reading it.
const WORTH_PART: usize = 8;

/// How prefixes are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixOptions {
    /// Who shares with whom.
    pub sharing: PrefixSharing,
    /// Nodes of the tree end at multiples of so many tokens; a multiple of 64.
    pub block_tokens: usize,
    /// Bytes of RAM that the tree may hold, its tables included; what requests have locked stays beyond that.
    pub max_bytes: usize,
    /// Where prefixes outlive the process, if anywhere.
    pub kv_dir: Option<KvDir>,
}

/// Why prefixes cannot be kept as asked.
#[derive(Debug, thiserror::Error)]
pub enum PrefixError {
    /// Blocks of the tree are not whole tiles.
    #[error("blocks of {0} tokens cannot be shared: use a multiple of {tile}", tile = kvik_kernels::attention::TILE_TOKENS)]
    BlockTokens(usize),
    /// The folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks that blocks of so many tokens can be shared.
///
/// # Errors
/// [`PrefixError::BlockTokens`] if they are not whole tiles.
pub(crate) fn check_block_tokens(block_tokens: usize) -> Result<(), PrefixError> {
    let whole_tiles = block_tokens > 0 && block_tokens.is_multiple_of(kvik_kernels::attention::TILE_TOKENS);
    if whole_tiles { Ok(()) } else { Err(PrefixError::BlockTokens(block_tokens)) }
}

/// A sequence that has its prompt's prefix.
pub struct Begun {
    /// The sequence, with the methods of its pipeline.
    pub cache: SequenceCache,
    /// Tokens of the prompt that it has; the rest is to be computed.
    pub tokens: usize,
    /// Numbers of tokens of the prompt, rising, after which reading it is to pause for [`PrefixCache::keep`], because a sliding window
    /// has left them behind later: where it parts from earlier prompts, and its last whole block. None for models without
    /// sliding windows, whose prompts can be kept at any time.
    pub pauses: Vec<usize>,
    /// Keeps the prefix in the tree while the request runs: evicting it would free nothing.
    pub lock: Option<PrefixLock>,
    /// Whose prefix it is.
    node: Option<NodeId>,
}

impl Begun {
    /// A sequence that begins with nothing.
    pub fn without_prefix(cache: SequenceCache) -> Self {
        Self { cache, tokens: 0, pauses: Vec::new(), lock: None, node: None }
    }
}

/// A prefix that is on its way from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading(Address);

/// A prefix that was not read after this time is computed: even a slow disk reads what waits for it at most meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// What prefixes did since the start, and what they take now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PrefixStatistics {
    /// Requests that began.
    pub requests: u64,
    /// Requests that began with a prefix.
    pub hits: u64,
    /// Tokens of all their prompts.
    pub prompt_tokens: u64,
    /// Tokens that were not computed, because a prefix had them.
    pub hit_tokens: u64,
    /// Nodes of the tree.
    pub nodes: usize,
    /// Tokens that the tree holds.
    pub tokens: usize,
    /// Bytes of blocks that it holds.
    pub bytes: usize,
    /// Bytes of the tables that say which blocks are whose.
    pub table_bytes: usize,
    /// The folder, if there is one.
    pub disk: Option<DiskStatistics>,
}

/// Prefixes in memory and on a disk.
pub struct PrefixCache {
    sharing: PrefixSharing,
    block_tokens: usize,
    max_bytes: usize,
    tree: PrefixTree,
    disk: Option<Disk>,
    report: Report,
    /// How long a request waits for a prefix that is being read.
    pub(crate) patience: Duration,
    statistics: PrefixStatistics,
}

struct Disk {
    store: PrefixStore,
    origin: Origin,
    loading: HashMap<Address, Reading>,
}

/// A file that is being read.
struct Reading {
    scope: Scope,
    loaded: Receiver<Option<Loaded>>,
    since: Instant,
    /// Nobody waits for it any more. If it comes all the same, it serves later requests.
    given_up: bool,
}

impl PrefixCache {
    /// Keeps prefixes of the sequences of `store`. `report` hears sentences about what goes wrong with the folder and is worked
    /// around; `wake` is called, on another thread, when a prefix was read.
    ///
    /// # Errors
    /// [`PrefixError`] if the options cannot be met.
    pub fn new(
        options: &PrefixOptions,
        store: &KvStore,
        tokenizer: Option<&Tokenizer>,
        report: Report,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Result<Self, PrefixError> {
        let block_tokens = options.block_tokens;
        check_block_tokens(block_tokens)?;
        let open = |dir: &KvDir| -> Result<Disk, StoreError> {
            let origin = Origin::new(store.shape(), &tokenizer.map_or_else(Vec::new, tokenizer_identity));
            let store = PrefixStore::open(dir, Arc::clone(&report), wake)?;
            Ok(Disk { store, origin, loading: HashMap::new() })
        };
        let dir = options.kv_dir.as_ref().filter(|_| options.sharing != PrefixSharing::Off);
        Ok(Self {
            sharing: options.sharing,
            block_tokens,
            max_bytes: options.max_bytes,
            tree: PrefixTree::new(block_tokens, Box::new(LeastRecentlyUsed)),
            disk: dir.map(open).transpose()?,
            report,
            patience: PATIENCE,
            statistics: PrefixStatistics::default(),
        })
    }

    /// Looks for a prefix of a request that has arrived. If the folder has a longer one than memory, it is read from now on, and the
    /// request had better wait while [`Self::is_loading`].
    pub fn prepare(
        &mut self,
        store: &KvStore,
        owner: Option<&Arc<str>>,
        pipeline: &Pipeline,
        prompt: &[u32],
    ) -> Option<Loading> {
        let scope = self.sharing.scope(owner)?;
        let disk = self.disk.as_mut()?;
        let chain = Chain::new(disk.origin.seed(&scope), prompt);
        let OnDisk { file, file_tokens, tokens } = disk.store.longest(&chain)?;
        // A pipeline that the model does not know is found out when the request begins.
        let own_tokens = store.sequence_with(pipeline).ok()?.own_tokens()?;
        let limit = prompt.len().saturating_sub(own_tokens);
        let held = self.tree.find(store, &scope, prompt, limit).map_or(0, |found| found.tokens);
        if tokens.min(limit).saturating_sub(held) <= file_tokens / WORTH_PART {
            return None;
        }
        // Files are read one after the other: behind one that does not come, none does.
        if disk.loading.values().any(|reading| reading.given_up) {
            return None;
        }
        if !disk.loading.contains_key(&file) {
            let loaded = disk.store.load(file)?;
            disk.loading.insert(file, Reading { scope, loaded, since: Instant::now(), given_up: false });
        }
        Some(Loading(file))
    }

    /// Takes in what was read from the disk.
    pub fn poll(&mut self, store: &mut KvStore) {
        let Some(disk) = &mut self.disk else { return };
        let mut done = Vec::new();
        disk.loading.retain(|&file, reading| match reading.loaded.try_recv() {
            Ok(loaded) => {
                done.extend(loaded.map(|loaded| (file, reading.scope.clone(), loaded)));
                false
            }
            Err(TryRecvError::Empty) => {
                if !reading.given_up && reading.since.elapsed() >= self.patience {
                    reading.given_up = true;
                    let seconds = self.patience.as_secs_f64();
                    (self.report)(&format!(
                        "the prefix {file} was not read within {seconds} seconds and is computed: look after its disk"
                    ));
                }
                true
            }
            Err(TryRecvError::Disconnected) => false,
        });
        for (file, scope, Loaded { tokens, image }) in done {
            match store.import_bare(&image[..], &Pipeline::full()) {
                Ok(cache) if cache.is_exact() && cache.len() == tokens.len() => {
                    self.insert(store, &scope, &tokens, &cache);
                }
                Ok(_) => self.discard(file, "its cache is not that of its tokens"),
                Err(CacheError::Import(reason)) => self.discard(file, &reason),
                // There is no room: the prefix stays on the disk, and is computed this time.
                Err(_) => {}
            }
        }
    }

    fn discard(&self, file: Address, reason: &str) {
        if let Some(disk) = &self.disk {
            disk.store.discard(file, reason);
        }
    }

    /// True until [`Self::poll`] has taken in, or given up, what [`Self::prepare`] asked for.
    pub fn is_loading(&self, loading: &Loading) -> bool {
        let reading = self.disk.as_ref().and_then(|disk| disk.loading.get(&loading.0));
        reading.is_some_and(|reading| !reading.given_up)
    }

    /// A new sequence for a request, which begins with the longest prefix of its prompt that may be shared with it; never with all
    /// of the prompt.
    ///
    /// # Errors
    /// [`CacheError`] if a method of the pipeline does not fit the model.
    pub fn begin(
        &mut self,
        store: &mut KvStore,
        owner: Option<&Arc<str>>,
        pipeline: &Pipeline,
        prompt: &[u32],
    ) -> Result<Begun, CacheError> {
        let cache = store.sequence_with(pipeline)?;
        let mut begun = Begun::without_prefix(cache);
        if let (Some(scope), Some(own_tokens)) = (self.sharing.scope(owner), begun.cache.own_tokens()) {
            let limit = prompt.len().saturating_sub(own_tokens);
            let found = self.tree.find(store, &scope, prompt, limit);
            if let Some(found) = found.filter(|found| found.tokens >= LEAST_TOKENS)
                && let Some(prefix) = self.tree.cache(found.node)
                && begun.cache.start_from(store, prefix, found.tokens)
            {
                begun.tokens = found.tokens;
                begun.lock = Some(self.tree.pin(found.node));
                begun.node = Some(found.node);
            }
            if store.shape().layers.iter().any(|layer| layer.window.is_some()) {
                let last = prompt.len() / self.block_tokens * self.block_tokens;
                begun.pauses = vec![self.tree.known(&scope, prompt), last];
                begun.pauses.dedup();
                begun.pauses.retain(|&pause| pause > begun.tokens);
            }
        }
        Ok(begun)
    }

    /// Says that the request which has `begun` runs from now on: its prefix was used. `again` if it ran before; requests count once.
    pub fn admitted(&mut self, owner: Option<&Arc<str>>, prompt: &[u32], begun: &Begun, again: bool) {
        if !again {
            self.statistics.requests += 1;
            self.statistics.prompt_tokens += prompt.len() as u64;
            self.statistics.hits += u64::from(begun.tokens > 0);
            self.statistics.hit_tokens += begun.tokens as u64;
        }
        if let (Some(scope), Some(node)) = (self.sharing.scope(owner), begun.node) {
            self.tree.lock(node);
            if let Some(disk) = &self.disk {
                let chain = Chain::new(disk.origin.seed(&scope), &prompt[..begun.tokens]);
                if let Some(used) = disk.store.longest(&chain) {
                    disk.store.touch(used.file);
                }
            }
        }
    }

    /// Tokens of a prompt that a sequence which has to read `own_tokens` of it itself could begin with right now.
    pub fn held(
        &self,
        store: &KvStore,
        owner: Option<&Arc<str>>,
        prompt: &[u32],
        own_tokens: Option<usize>,
    ) -> usize {
        let found = self.sharing.scope(owner).zip(own_tokens).and_then(|(scope, own_tokens)| {
            self.tree.find(store, &scope, prompt, prompt.len().saturating_sub(own_tokens))
        });
        found.map_or(0, |found| found.tokens)
    }

    /// Takes in the beginning of a sequence: `tokens`, all of which it has read as a prompt, and none generated. Whole blocks are kept,
    /// as long as nothing has rewritten them. The lock keeps them in the tree, in the place of the one that the request began
    /// with.
    pub fn keep(
        &mut self,
        store: &mut KvStore,
        owner: Option<&Arc<str>>,
        tokens: &[u32],
        cache: &SequenceCache,
    ) -> Option<PrefixLock> {
        let scope = self.sharing.scope(owner)?;
        let (lock, branch) = self.insert(store, &scope, tokens, cache)?;
        if let Some(branch) = branch {
            self.write(store, branch);
        }
        Some(lock)
    }

    fn insert(
        &mut self,
        store: &mut KvStore,
        scope: &Scope,
        tokens: &[u32],
        cache: &SequenceCache,
    ) -> Option<(PrefixLock, Option<NodeId>)> {
        let inserted = self.tree.insert(store, scope, tokens, cache)?;
        let lock = self.tree.pin(inserted.node);
        self.tree.shrink_to(store, self.max_bytes);
        Some((lock, inserted.branch))
    }

    /// Frees at least `bytes` of the store, if prefixes that no request uses have so many, and returns how many.
    pub fn evict(&mut self, store: &mut KvStore, bytes: usize) -> usize {
        self.tree.evict(store, bytes)
    }

    /// Uses a moment without work: lets go what the tree holds too much of because requests had it locked, and hands one prefix that
    /// is not on the disk over to be written. False if there is none, or too many wait already.
    pub fn idle(&mut self, store: &mut KvStore) -> bool {
        self.tree.shrink_to(store, self.max_bytes);
        while let (Some(_), Some(node)) = (&self.disk, self.tree.next_unsettled()) {
            match self.write(store, node) {
                Written::Queued => return true,
                Written::Busy => return false,
                Written::NotWorthIt => {}
            }
        }
        false
    }

    /// Hands over what is not on the disk, and waits until it is written or `most` has passed: for the end of the process.
    pub fn finish(&mut self, store: &mut KvStore, most: Duration) {
        let end = Instant::now() + most;
        let left = || end.saturating_duration_since(Instant::now());
        while !left().is_zero()
            && let Some(disk) = &self.disk
        {
            let pause = Duration::from_millis(20).min(left());
            let nothing_waits = disk.store.flush(pause);
            if !self.idle(store) && nothing_waits && self.tree.next_unsettled().is_none() {
                break;
            }
        }
    }

    /// Hands a node's prefix over to be written, if it is worth it.
    fn write(&mut self, store: &KvStore, node: NodeId) -> Written {
        let Some(disk) = &self.disk else { return Written::NotWorthIt };
        let (Some(scope), Some(cache)) = (self.tree.scope_of(node), self.tree.cache(node)) else {
            return Written::NotWorthIt;
        };
        let seed = disk.origin.seed(scope);
        let tokens = self.tree.tokens_of(node);
        let chain = Chain::new(seed, &tokens);
        let there = disk.store.longest(&chain).map_or(0, |there| there.tokens);
        let bytes = cache.bytes_beside(store, None);
        if tokens.len() - there <= tokens.len() / WORTH_PART {
            self.tree.settle(node);
            return Written::NotWorthIt;
        }
        if !disk.store.can_hold(bytes) {
            self.tree.settle(node);
            return Written::NotWorthIt;
        }
        if !chain.last().is_some_and(|file| disk.store.wants(file, bytes)) {
            return Written::Busy;
        }
        let mut image = Vec::with_capacity(bytes + bytes / 64 + (64 << 10));
        if cache.export_bare(store, &mut image).is_err() {
            self.tree.settle(node);
            return Written::NotWorthIt;
        }
        if !disk.store.save(&chain, seed, tokens, image) {
            return Written::Busy;
        }
        self.tree.settle(node);
        Written::Queued
    }

    /// Checks that everything adds up; see [`PrefixTree::check`].
    ///
    /// # Errors
    /// A sentence that names the defect. [`Self::forget`] is the way on.
    pub fn check(&self, store: &mut KvStore) -> Result<Held, String> {
        self.tree.check(store)
    }

    /// Forgets all that is in memory.
    pub fn forget(&mut self, store: &mut KvStore) {
        self.tree.clear();
        store.reclaim();
    }

    /// The trees of those who share, as far as they were used last; times count from `start` on.
    pub fn trees(&self, start: Instant) -> Vec<PrefixTreeStatus> {
        self.tree.status(start)
    }

    /// What prefixes did and take.
    pub fn statistics(&self) -> PrefixStatistics {
        PrefixStatistics {
            nodes: self.tree.nodes(),
            tokens: self.tree.tokens(),
            bytes: self.tree.bytes(),
            table_bytes: self.tree.table_bytes(),
            disk: self.disk.as_ref().map(|disk| disk.store.statistics()),
            ..self.statistics
        }
    }
}

enum Written {
    Queued,
    /// Too much waits already.
    Busy,
    NotWorthIt,
}

/// The SHA-256 of the bytes that each token stands for.
fn tokenizer_identity(tokenizer: &Tokenizer) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for id in 0..tokenizer.vocab_len() as u32 {
        bytes.clear();
        tokenizer.append_token_bytes(id, &mut bytes);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    hash.finalize().to_vec()
}
