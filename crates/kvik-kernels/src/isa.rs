//! Which instruction set the kernels use: found out once, or forced through `KVIK_ISA`.

use std::{fmt, str::FromStr, sync::OnceLock};

/// An instruction set that Kvik has kernels for, in rising order of speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust: the reference that the others are tested against.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ) with VNNI and BF16. Prompts are multiplied in integers, as in the sets below.
    Avx512,
    /// The same instructions; prompts are multiplied in bf16. Faster where a bf16 dot product takes no longer than an integer
    /// one (AMD), slower where it does (Intel).
    Avx512Bf16,
    /// AVX-512 as above, and AMX tiles with bf16 products.
    Amx,
}

/// `KVIK_ISA` names no instruction set that Kvik has kernels for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown instruction set '{0}': use scalar, avx2, avx512, avx512bf16 or amx")]
pub struct UnknownIsa(String);

impl Isa {
    /// The best set that this processor has.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(Self::look)
    }

    fn look() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512bf16");
            if avx512 {
                return if crate::amx::available() {
                    Self::Amx
                } else if multiplies_bf16_fast() {
                    Self::Avx512Bf16
                } else {
                    Self::Avx512
                };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// The set in use: `KVIK_ISA` if it is set and this processor has it, else the best. Fixed at the first call.
    pub fn active() -> Self {
        static ACTIVE: OnceLock<Isa> = OnceLock::new();
        *ACTIVE.get_or_init(|| Self::requested().ok().flatten().unwrap_or_else(Self::detect))
    }

    /// What `KVIK_ISA` asks for, lowered to what this processor has; `None` when it is not set.
    ///
    /// # Errors
    /// [`UnknownIsa`] when the variable names no set: programs report it at start-up.
    pub fn requested() -> Result<Option<Self>, UnknownIsa> {
        match std::env::var("KVIK_ISA") {
            Ok(name) => name.parse::<Self>().map(|isa| Some(isa.min(Self::detect()))),
            Err(_) => Ok(None),
        }
    }

    /// All sets that this processor can run, the scalar reference first: what property tests go through.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx]
            .into_iter()
            .filter(|&isa| isa <= Self::detect())
    }
}

impl Isa {
    /// Whether the rows of a prompt are multiplied in bf16 rather than in integers, with weights of all types but F32 and F16.
    pub fn prefills_in_bf16(self) -> bool {
        self >= Self::Avx512Bf16
    }
}

/// Whether a bf16 dot product takes no longer than an integer one. True of AMD's processors; on Intel's it takes four times as
/// long, so that two planes of integers are faster where there is no tile unit.
#[cfg(target_arch = "x86_64")]
fn multiplies_bf16_fast() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes)
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        match name.to_ascii_lowercase().as_str() {
            "scalar" => Ok(Self::Scalar),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "avx512bf16" => Ok(Self::Avx512Bf16),
            "amx" => Ok(Self::Amx),
            _ => Err(UnknownIsa(name.to_owned())),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        })
    }
}
