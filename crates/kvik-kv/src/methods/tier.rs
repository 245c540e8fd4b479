//! Tier: the part of the cache that has no room in RAM lies in a file.
//!
//! Not from one paper: the order in which blocks come and go is that of "FlexGen: High-Throughput Generative Inference of Large
//! Language Models with a Single GPU" (Sheng et al., ICML 2023, arXiv 2303.06865), which reads the cache of the next layer while
//! one layer computes.
//!
//! It changes no number: a pipeline gives the same bits with `tier` behind it and without. `ram` bounds the RAM of one sequence's
//! cache. Every decoded token goes through all layers, so what was used last is needed last; the oldest tokens of each head
//! therefore stay in RAM, as many as the budget allows, and those in the middle come from the file layer by layer, read ahead on
//! another thread while the layer before computes. The most recent 256 tokens always stay. Only what changed is written, once;
//! later it is just dropped. Where an earlier method chooses which tokens are visited, only those are read, and what is read
//! ahead is what the step before visited. Blocks come back with their checksum verified; a damaged one stops the answer, with the
//! reason, and nothing is ever computed from it. So does a full disk, but then nothing is lost: what could not be written is still
//! in RAM, and the sequence goes on once there is room.
//!
//! The working set is part of the budget: the streamed part of two layers, the recent tokens, and the chunk of a prompt that is
//! being read. Where these alone exceed `ram`, they are what is used. Models with sliding windows keep those layers in RAM: they
//! are small.
//!
//! The file has no name and vanishes with the sequence, or with the process. It is as large as what was moved. On many systems the
//! folder for temporary files is RAM too (tmpfs): name a folder on a disk then. A decoded token reads all that is not in RAM, so
//! its time is at least those bytes over the speed of the disk; what the system keeps of the file in its page cache comes at the
//! speed of memory, but does not count as RAM here; `kvik reproduce tier` measures that case. Methods that rewrite old tokens at every
//! step make it write them at every step.

use std::path::Path;

use crate::{
    Arguments, CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind, SpillFile,
    StepQueries,
};
use kvik_kernels::attention::PlaneKind;

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "tier",
    direction: Direction::Place,
    summary: "bounds RAM: what has no room lies in a file and is read ahead, layer by layer",
    paper: "after FlexGen, Sheng et al., ICML 2023, arXiv 2303.06865",
    parameters: &[
        Parameter {
            name: "ram",
            kind: ParameterKind::Bytes,
            default: "256MiB",
            about: "bytes of RAM for the cache of one sequence",
        },
        Parameter {
            name: "path",
            kind: ParameterKind::Text,
            default: "temp",
            about: "folder for the file; `temp` is the system's folder for temporary files",
        },
        Parameter {
            name: "prefetch",
            kind: ParameterKind::Choice(&["yes", "no"]),
            default: "yes",
            about: "whether the next layer is read while one computes",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("tier.rs"),
    check: |_| None,
    build: |arguments, _| Ok(Box::new(Tier::new(arguments)?)),
};

/// Tiles at the end of a head that stay in RAM: new tokens go there, and methods that encode with a recent window of up to 128
/// tokens write there at every step.
const RECENT_TILES: usize = 4;

const PLANES: [PlaneKind; 2] = [PlaneKind::Keys, PlaneKind::Values];

#[derive(Clone)]
struct Tier {
    ram_bytes: usize,
    prefetch: bool,
    file: SpillFile,
    /// Of each head's tiles that may leave RAM, the share that stays.
    share: f64,
    /// Tiles that the sequence had when `share` was computed.
    planned_tiles: usize,
    /// The layer that the last queries attended at: its streamed tiles are in RAM.
    last: Option<usize>,
}

impl Tier {
    fn new(arguments: &Arguments) -> Result<Self, String> {
        let folder = match arguments.text("path") {
            "temp" => std::env::temp_dir(),
            path => Path::new(path).to_owned(),
        };
        Ok(Self {
            ram_bytes: arguments.bytes("ram") as usize,
            prefetch: arguments.text("prefetch") == "yes",
            file: SpillFile::in_folder(&folder).map_err(|error| error.to_string())?,
            share: 1.0,
            planned_tiles: 0,
            last: None,
        })
    }

    /// Decides which share of the tiles stays, so that this share, what never leaves, and the streamed part of the layers that
    /// are in RAM together fill the budget.
    fn plan(&mut self, cache: &OpenCache<'_>) {
        let mut movable = vec![0; cache.shape().layers.len()];
        // Room for the next tile of each head is taken before it is asked again.
        let mut fixed = 0;
        self.planned_tiles = 0;
        for (layer, kv_head) in cache.heads() {
            fixed += cache.layer(layer).tile().tile_bytes();
            let tiles = cache.tiles(layer, kv_head);
            movable[layer] += cache.tile_bytes(layer, kv_head, 0..movable_tiles(tiles));
            self.planned_tiles += tiles;
        }
        let all: usize = movable.iter().sum();
        fixed += cache.used_bytes() + cache.away_bytes() - all;
        let layers_in_ram = if self.prefetch { 2 } else { 1 };
        let passing = movable.iter().max().map_or(0, |most| layers_in_ram * most).min(all);
        let room = self.ram_bytes as f64 - (fixed + passing) as f64;
        self.share = if fixed + all <= self.ram_bytes {
            1.0
        } else {
            (room / (all - passing).max(1) as f64).clamp(0.0, 1.0)
        };
    }

    /// The tiles of a head that do not stay in RAM.
    fn streamed(&self, cache: &OpenCache<'_>, layer: usize, kv_head: usize) -> std::ops::Range<u32> {
        let movable = movable_tiles(cache.tiles(layer, kv_head));
        (f64::from(movable) * self.share) as u32..movable
    }

    /// Takes the streamed tiles of a layer out of RAM.
    fn offload(&self, cache: &mut OpenCache<'_>, layer: usize) -> Result<(), CacheError> {
        for kv_head in 0..cache.layer(layer).kv_heads {
            for plane in PLANES {
                let tiles = self.streamed(cache, layer, kv_head);
                cache.offload(&self.file, layer, kv_head, plane, tiles)?;
            }
        }
        Ok(())
    }

    /// Has read what the next queries at a layer will probably visit.
    fn read_ahead(&self, cache: &mut OpenCache<'_>, layer: usize) {
        for kv_head in 0..cache.layer(layer).kv_heads {
            let visited = cache.visited(layer, kv_head).map(<[u32]>::to_vec);
            for plane in PLANES {
                match &visited {
                    Some(tiles) => cache.prefetch(layer, kv_head, plane, tiles.iter().copied()),
                    None => cache.prefetch(layer, kv_head, plane, 0..cache.tiles(layer, kv_head) as u32),
                }
            }
        }
    }

    /// Keeps the budget after the cache has changed.
    fn settle(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let layers: Vec<usize> = cache.shape().full_layers().collect();
        layers.into_iter().try_for_each(|layer| self.offload(cache, layer))
    }

    fn plan_and_settle(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.plan(cache);
        self.settle(cache)
    }
}

/// How many of a head's tiles may leave RAM.
fn movable_tiles(tiles: usize) -> u32 {
    tiles.saturating_sub(RECENT_TILES) as u32
}

impl Method for Tier {
    fn selects(&self) -> bool {
        true
    }

    fn rewrites(&self) -> bool {
        false
    }

    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        let (mut first, mut next) = (None, None);
        for full in cache.shape().full_layers() {
            first = first.or(Some(full));
            next = next.or((full > layer).then_some(full));
        }
        if cache.layer(layer).window.is_some() {
            return Ok(());
        }
        if first == Some(layer) && queries.positions.len() > 1 {
            // Room was taken for the rows of all layers.
            self.plan_and_settle(cache)?;
        }
        if self.share == 1.0 {
            return Ok(());
        }
        if let Some(last) = self.last.replace(layer).filter(|&last| last != layer) {
            self.offload(cache, last)?;
        }
        if let Some(next) = next.or(first).filter(|&next| self.prefetch && next != layer) {
            self.read_ahead(cache, next);
        }
        Ok(())
    }

    fn after_chunk(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.plan_and_settle(cache)
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.plan_and_settle(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let tiles: usize = cache.heads().iter().map(|&(layer, kv_head)| cache.tiles(layer, kv_head)).sum();
        if tiles != self.planned_tiles {
            self.plan(cache);
        }
        if self.share < 1.0 { self.settle(cache) } else { Ok(()) }
    }

    fn truncated(&mut self, _len: usize) {
        self.planned_tiles = 0;
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
