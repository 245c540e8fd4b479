//! What this machine can do at most: bytes read from memory and operations done, in a second.
//!
//! The loops are `kvik_kernels::roofline`'s. Memory is read from a buffer so large that the last-level cache can hold
//! next to nothing of it. A limit is the best that was ever seen, so measuring again can only raise it.

use std::{fs, hint::black_box, io, time::Instant};

use kvik_kernels::{
    Isa, ThreadPool,
    roofline::{self, Arithmetic},
};
use kvik_memory::{Buffer, Owner};
use serde::Serialize;

use super::work::Work;

/// The buffer is at least this large, and at least [`CACHE_MULTIPLE`] times the last-level cache.
const LEAST_BUFFER_BYTES: usize = 512 << 20;
const CACHE_MULTIPLE: usize = 4;
/// Bytes that a thread reads at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Tries of one measurement, of which the best counts: enough for one that nothing else on the machine disturbs.
const TRIES: usize = 8;
/// Turns of an arithmetic loop that a thread does at a time (a fraction of a millisecond), and how often.
const TURNS: u64 = 200_000;
const PIECES_PER_THREAD: usize = 8;

/// Limits of this machine, on some threads and one instruction set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// The instruction set.
    pub isa: String,
    /// Threads that all but the first limit are for.
    pub threads: usize,
    /// 10⁹ bytes per second from memory on one thread.
    pub read_gb_per_s_1_thread: f64,
    /// 10⁹ bytes per second from memory.
    pub read_gb_per_s: f64,
    /// 10⁹ operations per second in 8-bit dot products; a multiplication and an addition count as one each.
    pub int8_gop_per_s: f64,
    /// 10⁹ operations per second in bf16 dot products.
    pub bf16_gop_per_s: f64,
    /// 10⁹ operations per second in `f32` multiply-adds.
    pub f32_gop_per_s: f64,
    /// Bytes of the buffer that is read.
    pub buffer_bytes: usize,
}

/// What keeps a piece of work from being done faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Reading memory.
    Memory,
    /// Arithmetic.
    Compute,
}

impl Limits {
    /// The least time in seconds that `work` can take, and why: reading and arithmetic go on at the same time, the
    /// kinds of arithmetic one after the other.
    pub fn least_seconds(&self, work: &Work) -> (f64, Bound) {
        let memory = work.bytes / self.read_gb_per_s;
        let compute = work.int8_ops / self.int8_gop_per_s
            + work.bf16_ops / self.bf16_gop_per_s
            + work.f32_ops / self.f32_gop_per_s;
        if memory >= compute { (memory / 1e9, Bound::Memory) } else { (compute / 1e9, Bound::Compute) }
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        format!(
            "{}, limits on {} threads: {:.1} GB/s from memory ({:.1} on one thread), {:.0} Gop/s int8 dot, {:.0} Gop/s \
             bf16 dot, {:.0} Gop/s f32.",
            self.isa,
            self.threads,
            self.read_gb_per_s,
            self.read_gb_per_s_1_thread,
            self.int8_gop_per_s,
            self.bf16_gop_per_s,
            self.f32_gop_per_s
        )
    }
}

/// Measures [`Limits`].
pub struct Gauge {
    isa: Isa,
    buffer: Buffer,
    limits: Limits,
}

impl Gauge {
    /// A gauge for `isa` and pools of `threads` threads, which has not measured yet.
    ///
    /// # Errors
    /// When the system refuses the memory that is to be read.
    pub fn new(isa: Isa, threads: usize) -> io::Result<Self> {
        let bytes = LEAST_BUFFER_BYTES.max(CACHE_MULTIPLE * last_level_cache_bytes().unwrap_or(0));
        let mut buffer = Buffer::zeroed(bytes, Owner::Scratch)?;
        // Untouched pages would all be one page of zeros, which fits any cache.
        buffer.fill(1);
        let limits = Limits {
            isa: isa.to_string(),
            threads,
            read_gb_per_s_1_thread: 0.0,
            read_gb_per_s: 0.0,
            int8_gop_per_s: 0.0,
            bf16_gop_per_s: 0.0,
            f32_gop_per_s: 0.0,
            buffer_bytes: bytes,
        };
        Ok(Self { isa, buffer, limits })
    }

    /// Measures on the threads of `pool`.
    pub fn measure(&mut self, pool: &ThreadPool) {
        let Self { isa, buffer, limits } = self;
        for _ in 0..TRIES {
            raise(&mut limits.read_gb_per_s_1_thread, || {
                black_box(roofline::read(*isa, buffer));
                buffer.len() as f64
            });
            raise(&mut limits.read_gb_per_s, || {
                pool.for_each_piece(buffer.len(), PIECE_BYTES, |piece| {
                    black_box(roofline::read(*isa, &buffer[piece]));
                });
                buffer.len() as f64
            });
            for (limit, arithmetic) in [
                (&mut limits.int8_gop_per_s, Arithmetic::Int8Dot),
                (&mut limits.bf16_gop_per_s, Arithmetic::Bf16Dot),
                (&mut limits.f32_gop_per_s, Arithmetic::F32MulAdd),
            ] {
                raise(limit, || {
                    let pieces = PIECES_PER_THREAD * pool.threads();
                    pool.for_each_piece(pieces, 1, |_| {
                        black_box(roofline::compute(*isa, arithmetic, TURNS));
                    });
                    // How many operations a turn has is known from one more.
                    (pieces as u64 * TURNS * roofline::compute(*isa, arithmetic, 1)) as f64
                });
            }
        }
    }

    /// The best so far.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}

/// Raises `limit`, in 10⁹ per second, to what `run` reaches, which returns how much it did.
fn raise(limit: &mut f64, run: impl FnOnce() -> f64) {
    let start = Instant::now();
    let done = run();
    *limit = limit.max(done / start.elapsed().as_secs_f64() / 1e9);
}

/// The largest cache of the first core, as the system tells it.
pub(crate) fn last_level_cache_bytes() -> Option<usize> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.flatten().filter_map(|cache| fs::read_to_string(cache.path().join("size")).ok());
    sizes.filter_map(|size| parse_size(size.trim())).max()
}

/// `32768K` in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            isa: "scalar".into(),
            threads: 2,
            read_gb_per_s_1_thread: 5.0,
            read_gb_per_s: 10.0,
            int8_gop_per_s: 100.0,
            bf16_gop_per_s: 50.0,
            f32_gop_per_s: 25.0,
            buffer_bytes: 0,
        }
    }

    #[test]
    fn the_slower_of_reading_and_computing_is_the_bound() {
        let work = Work { bytes: 20e9, int8_ops: 50e9, bf16_ops: 25e9, f32_ops: 25e9 };
        assert_eq!(limits().least_seconds(&work), (2.0, Bound::Memory));
        let work = Work { bytes: 19e9, ..work };
        assert_eq!(limits().least_seconds(&work), (2.0, Bound::Compute));
    }

    #[test]
    fn cache_sizes_are_read_with_their_units() {
        assert_eq!(parse_size("32768K"), Some(32 << 20));
        assert_eq!(parse_size("16M"), Some(16 << 20));
        assert_eq!(parse_size("64"), Some(64));
        assert_eq!(parse_size("64Q"), None);
        assert_eq!(parse_size("K"), None);
    }

    #[test]
    fn measuring_again_never_lowers_a_limit() {
        let pool = ThreadPool::new(2);
        let mut gauge = Gauge::new(Isa::active(), 2).unwrap();
        gauge.measure(&pool);
        let first = gauge.limits().clone();
        gauge.measure(&pool);
        let second = gauge.limits();
        let of = |l: &Limits| [l.read_gb_per_s_1_thread, l.read_gb_per_s, l.int8_gop_per_s, l.bf16_gop_per_s];
        for (before, after) in of(&first).into_iter().zip(of(second)) {
            assert!(before > 0.0 && after >= before);
        }
        assert!(gauge.limits().buffer_bytes >= LEAST_BUFFER_BYTES);
    }
}
