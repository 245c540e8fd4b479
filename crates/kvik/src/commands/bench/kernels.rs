//! `kvik bench kernels`: kernel by kernel.

use std::io::{self, Write};

use anyhow::bail;
use kvik::bench::kernels::{self, KernelOptions};
use kvik_kernels::Isa;

use super::{RunArgs, progress};

/// Measure single kernels: matrices of every format, attention, norms, the start of a parallel region
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Instruction sets: scalar, avx2, avx512, avx512bf16, amx. Norms and quantisation run on that of KVIK_ISA only
    /// [default: that of KVIK_ISA, or the best]
    #[arg(long, value_name = "SETS", value_delimiter = ',')]
    isa: Vec<Isa>,
    /// Only kernels whose names contain this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    #[command(flatten)]
    run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  kvik bench kernels --only Q4_1
  kvik bench kernels --isa avx2,avx512 --only attention --threads 2

A call's time is the median over the rounds. GB/s are the weights or cached keys and values that it reads, Gop/s \
its operations (two for a multiply-add, twice that for quantised weights, whose activations come in two planes of 8 \
bits). The share is that of the limit, measured in the same run, of whichever of the two takes longer. Attention \
over a cache that is not stored in bf16 is set against the same over one that is: the median of the ratios, round \
by round.";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let sets = if args.isa.is_empty() { vec![Isa::active()] } else { args.isa.clone() };
    if let Some(missing) = sets.iter().find(|&&isa| isa > Isa::detect()) {
        bail!("this processor has no {missing}; the best that it has is {}", Isa::detect());
    }
    let (pool, bar) = (args.run.pool(), progress());
    let reports = sets.into_iter().map(|isa| {
        let options = KernelOptions { isa, rounds: args.run.rounds(), filter: args.only.clone() };
        kernels::run(&pool, &options, &mut |what| bar.set_message(what.to_owned()))
    });
    let reports = reports.collect::<Result<Vec<_>, _>>()?;
    bar.finish_and_clear();
    if reports.iter().all(|report| report.kernels.is_empty()) {
        bail!("no kernel's name contains '{}'; without --only all are measured", args.only);
    }
    if args.run.json {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &reports).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    for report in &reports {
        args.run.print_table(&report.limits.sentence(), &report.table(), &[])?;
    }
    Ok(())
}
