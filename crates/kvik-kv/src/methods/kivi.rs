//! KIVI: keys in few bits by channel, values in few bits by token, and a recent window as it was.
//!
//! Liu, Yuan et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024 (arXiv 2402.02750).
//!
//! Keys have a few channels with a large offset, so `group` tokens of one channel get a scale together; attention mixes few
//! values at a time, so `group` channels of one token do, and an error stays with its token. The prompt attends to keys and
//! values as they are; then keys are encoded in whole runs of `residual` tokens and values up to the last `residual`. While
//! decoding, the exact keys are encoded in one go when there are `residual` of them, and one more value with every token.
//!
//! Defaults are the paper's: 2 bits, groups of 32, a window of 128. The authors advise 4 bits where query heads share KV heads,
//! as they do in most models of today.
//!
//! Keys are encoded as they are cached, after rotation. What a group stores is its smallest and largest number in bf16, exact
//! for cached rows of any size, in the place of a scale and a minimum in fp16. Methods that drop rows while decoding make it
//! encode anew what moves, which costs time and rounds again. At 2 bits a row takes 3 bits a number, so a long cache shrinks to a
//! fifth; up to `residual` tokens it does nothing, and the weights stay as large as they are.

use std::sync::Arc;

use kvik_kernels::attention::{Affine, Codec, PlaneKind};

use crate::{Arguments, CacheError, Direction, Method, MethodInfo, OpenCache, Parameter, ParameterKind};

/// Bits of keys or values: those of `bits`, unless said otherwise.
const BITS_OF_PLANE: ParameterKind = ParameterKind::Choice(&["same", "1", "2", "4", "8"]);

/// What the registry knows of it.
pub const INFO: MethodInfo = MethodInfo {
    name: "kivi",
    direction: Direction::Bits,
    summary: "keys by channel and values by token in 2 bits, recent tokens in full",
    paper: "Liu, Yuan et al., ICML 2024, arXiv 2402.02750",
    parameters: &[
        Parameter {
            name: "bits",
            kind: ParameterKind::Choice(&["1", "2", "4", "8"]),
            default: "2",
            about: "bits of a code (the paper's default; its authors advise 4 for grouped queries)",
        },
        Parameter {
            name: "key_bits",
            kind: BITS_OF_PLANE,
            default: "same",
            about: "bits of keys, if they differ",
        },
        Parameter {
            name: "value_bits",
            kind: BITS_OF_PLANE,
            default: "same",
            about: "bits of values, if they differ",
        },
        Parameter {
            name: "group",
            kind: ParameterKind::Choice(&["16", "32", "64"]),
            default: "32",
            about: "numbers with a scale of their own (the paper's default)",
        },
        Parameter {
            name: "residual",
            kind: ParameterKind::Count { min: 16, max: 1 << 20 },
            default: "128",
            about: "recent tokens that stay exact, a multiple of the group (the paper's default; it used 32 for GSM8K)",
        },
    ],
    query_free: true,
    calibration: None,
    source: include_str!("kivi.rs"),
    check: |arguments| {
        let (residual, group) = (arguments.count("residual"), arguments.count("group"));
        (!residual.is_multiple_of(group)).then(|| {
            format!("kivi's residual of {residual} tokens must be a multiple of its group of {group}")
        })
    },
    build: |arguments, _| Ok(Box::new(Kivi::new(arguments))),
};

#[derive(Clone)]
struct Kivi {
    keys: Arc<dyn Codec>,
    values: Arc<dyn Codec>,
    residual: usize,
}

impl Kivi {
    fn new(arguments: &Arguments) -> Self {
        let codec = |bits: &str| -> Arc<dyn Codec> {
            let bits = if arguments.text(bits) == "same" { "bits" } else { bits };
            Arc::new(Affine::new(arguments.count(bits), arguments.count("group")))
        };
        Self { keys: codec("key_bits"), values: codec("value_bits"), residual: arguments.count("residual") }
    }

    /// Encodes what is not recent any more. The same rule does for a prompt and for a token: keys in whole runs of `residual`,
    /// values up to the last `residual`.
    fn encode(&self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            let rows = cache.rows(layer, kv_head);
            let keys = rows / self.residual * self.residual;
            let values = rows.saturating_sub(self.residual);
            cache.encode(layer, kv_head, PlaneKind::Keys, keys, &self.keys)?;
            cache.encode(layer, kv_head, PlaneKind::Values, values, &self.values)?;
        }
        Ok(())
    }
}

impl Method for Kivi {
    fn waits_for_end(&self) -> bool {
        true
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.encode(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.encode(cache)
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}
