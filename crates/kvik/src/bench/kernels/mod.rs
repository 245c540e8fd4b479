//! The kernels one by one: where a model's time goes, and which of them leaves the machine unused.
//!
//! Each kernel runs on shapes of the models that Kvik is measured with, on operands that are not in the caches when a
//! model's would not be: a kernel that reads weights or cached keys goes round copies of them that the last-level cache
//! cannot hold. A group of kernels is measured in rounds, as everything in [`super`] is.

mod attention;
mod matmul;
mod rows;

use std::{
    io,
    time::{Duration, Instant},
};

use kvik_kernels::{Isa, ThreadPool, matmul::PackError, quant::TensorType};
use serde::Serialize;

use super::{
    limits::{Bound, Gauge, Limits, last_level_cache_bytes},
    spread::Spread,
    table::Table,
    work::Work,
};

/// How long a measurement takes at least: long enough for the clock, short enough for many.
const SAMPLE: Duration = Duration::from_millis(5);

/// What is measured.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The instruction set. Kernels that cannot be told which to use are measured if it is the active one.
    pub isa: Isa,
    /// Rounds.
    pub rounds: usize,
    /// Only kernels whose names contain this.
    pub filter: String,
}

/// Kernels on one instruction set.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// What the machine can do.
    pub limits: Limits,
    /// Rounds.
    pub rounds: usize,
    /// Kernel by kernel.
    pub kernels: Vec<KernelFigure>,
}

/// One kernel.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFigure {
    /// Its name and shape.
    pub name: String,
    /// Microseconds of a call.
    pub us: Spread,
    /// 10⁹ bytes of weights or cache read per second, at the median.
    pub gb_per_s: f64,
    /// 10⁹ operations per second, at the median.
    pub gop_per_s: f64,
    /// What limits it and how much of that limit it reaches; nothing for kernels that neither read nor multiply much.
    pub roofline: Option<(Bound, f64)>,
    /// How many times as fast as the same on a bf16 cache it is, for kernels on caches that are stored otherwise: round by round.
    pub times_bf16: Option<Spread>,
}

/// Why kernels cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum KernelBenchError {
    /// The system refused memory.
    #[error("no memory to measure with: {0}")]
    Memory(#[from] io::Error),
    /// A matrix cannot be made.
    #[error(transparent)]
    Pack(#[from] PackError),
}

impl KernelOptions {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }
}

/// A kernel under measurement.
struct Kernel<'a> {
    name: String,
    work: Work,
    /// With the first kernel of its group.
    compared: bool,
    call: Box<dyn FnMut() + 'a>,
}

/// Measures the kernels that `options` ask for; `progress` hears which.
///
/// # Errors
/// If there is not enough memory.
pub fn run(
    pool: &ThreadPool,
    options: &KernelOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<KernelReport, KernelBenchError> {
    progress("this machine's limits");
    let mut gauge = Gauge::new(options.isa, pool.threads())?;
    gauge.measure(pool);
    let mut measured = Vec::new();
    let mut measure = |mut kernels: Vec<Kernel<'_>>| {
        let samples = interleave(&mut kernels, options.rounds, progress);
        for (kernel, us) in kernels.into_iter().zip(&samples) {
            let times = samples[0].iter().zip(us).map(|(first, us)| first / us);
            let times = if kernel.compared { Spread::of(times) } else { None };
            measured.push((kernel.name, kernel.work, us.clone(), times));
        }
    };
    for ty in TensorType::ALL {
        for shape in &matmul::SHAPES {
            measure(matmul::kernels(pool, options, ty, shape)?);
        }
    }
    for case in &attention::CASES {
        measure(attention::kernels(pool, options, case));
    }
    if options.isa == Isa::active() {
        measure(rows::kernels(pool, options)?);
    }
    gauge.measure(pool);
    let limits = gauge.limits().clone();
    let kernels = measured
        .into_iter()
        .filter_map(|(name, work, us, times_bf16)| {
            Some(KernelFigure { times_bf16, ..figure(name, work, us, &limits)? })
        })
        .collect();
    Ok(KernelReport { limits, rounds: options.rounds, kernels })
}

/// Microseconds of a call of each kernel, measured in rounds.
fn interleave(kernels: &mut [Kernel<'_>], rounds: usize, progress: &mut dyn FnMut(&str)) -> Vec<Vec<f64>> {
    let mut samples = vec![Vec::with_capacity(rounds); kernels.len()];
    let calls: Vec<u32> = kernels.iter_mut().map(|kernel| calls_of_a_sample(&mut kernel.call)).collect();
    for _ in 0..rounds {
        for ((kernel, &calls), samples) in kernels.iter_mut().zip(&calls).zip(&mut samples) {
            progress(&kernel.name);
            let start = Instant::now();
            (0..calls).for_each(|_| (kernel.call)());
            samples.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls));
        }
    }
    samples
}

/// How many calls fill a [`SAMPLE`]; found by doubling, which warms up too.
fn calls_of_a_sample(call: &mut dyn FnMut()) -> u32 {
    let mut calls = 1;
    loop {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        if start.elapsed() >= SAMPLE || calls >= 1 << 20 {
            return calls;
        }
        calls *= 2;
    }
}

fn figure(name: String, work: Work, us: Vec<f64>, limits: &Limits) -> Option<KernelFigure> {
    let us = Spread::of(us)?;
    let seconds = us.median / 1e6;
    let operations = work.int8_ops + work.bf16_ops + work.f32_ops;
    let (least, bound) = limits.least_seconds(&work);
    Some(KernelFigure {
        name,
        us,
        gb_per_s: work.bytes / seconds / 1e9,
        gop_per_s: operations / seconds / 1e9,
        roofline: (least > 0.0).then_some((bound, least / seconds)),
        times_bf16: None,
    })
}

impl KernelReport {
    /// The kernels.
    pub fn table(&self) -> Table {
        let header =
            [self.limits.isa.as_str(), "µs", "min–max", "GB/s", "Gop/s", "limit", "share", "times bf16"];
        let mut table = Table::new(header.map(String::from).to_vec());
        for kernel in &self.kernels {
            let Spread { median, min, max } = kernel.us;
            let mut row = vec![kernel.name.clone(), format!("{median:.1}"), format!("{min:.1}–{max:.1}")];
            if let Some((bound, share)) = kernel.roofline {
                let bound = if bound == Bound::Memory { "memory" } else { "compute" };
                row.extend([format!("{:.1}", kernel.gb_per_s), format!("{:.0}", kernel.gop_per_s)]);
                row.extend([bound.to_owned(), format!("{:.0} %", 100.0 * share)]);
            }
            row.extend(kernel.times_bf16.map(|times| format!("{:.2}", times.median)));
            table.push(row);
        }
        table
    }
}

fn in_words(rows: usize) -> String {
    if rows == 1 { "1 row".into() } else { format!("{rows} rows") }
}

/// How many operands of `bytes` bytes go well beyond the last-level cache together.
fn copies_beyond_cache(bytes: usize) -> usize {
    const WHERE_UNKNOWN: usize = 32 << 20;
    (4 * last_level_cache_bytes().unwrap_or(WHERE_UNKNOWN)).div_ceil(bytes.max(1))
}

/// Bytes from 0x3C to 0x3F in no particular order: in whatever field of whatever format they come to lie, they make a
/// number that is neither huge, tiny nor missing.
fn tame_bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| 0x3C | (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 62) as u8).collect()
}

/// Activations between -1 and 1.
fn activations(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 2001) as f32 / 1000.0 - 1.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_take_turns_and_each_has_a_sample_for_every_round() {
        let calls = std::cell::RefCell::new(Vec::new());
        let calls = &calls;
        let kernel = |name: &'static str| Kernel {
            name: name.into(),
            work: Work::default(),
            compared: false,
            call: Box::new(move || {
                calls.borrow_mut().push(name);
                std::thread::sleep(SAMPLE);
            }),
        };
        let samples = interleave(&mut [kernel("a"), kernel("b")], 2, &mut |_| ());
        assert_eq!(*calls.borrow(), ["a", "b", "a", "b", "a", "b"]);
        assert!(samples.iter().all(|us| us.len() == 2 && us.iter().all(|&us| us >= 5000.0)));
    }

    #[test]
    fn a_share_is_the_least_time_over_the_time_taken() {
        let limits = Limits {
            isa: "scalar".into(),
            threads: 1,
            read_gb_per_s_1_thread: 10.0,
            read_gb_per_s: 10.0,
            int8_gop_per_s: 100.0,
            bf16_gop_per_s: 100.0,
            f32_gop_per_s: 100.0,
            buffer_bytes: 0,
        };
        let work = Work { bytes: 1e6, int8_ops: 2e6, ..Work::default() };
        let kernel = figure("k".into(), work, vec![400.0, 100.0, 200.0], &limits).unwrap();
        assert_eq!((kernel.us.median, kernel.gb_per_s, kernel.gop_per_s), (200.0, 5.0, 10.0));
        assert_eq!(kernel.roofline, Some((Bound::Memory, 0.5)));
        assert_eq!(figure("k".into(), Work::default(), vec![1.0], &limits).unwrap().roofline, None);
    }
}
