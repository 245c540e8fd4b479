//! What is measured: one number of tokens per second.

use std::fmt;

use kvik_kernels::Phase;
use serde::Serialize;

use super::work::PassShape;

/// Prompt tokens that a prefill pass takes: what `kvik generate` does.
pub const PREFILL_CHUNK: usize = 512;

/// A figure of the speed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Figure {
    /// A prompt computed from nothing, up to the logits of its last token.
    Prefill {
        /// Its tokens.
        prompt: usize,
    },
    /// Tokens that follow one by one, in some sequences at the same time.
    Decode {
        /// Sequences; their tokens count together.
        sequences: usize,
        /// Tokens of each before the clock starts.
        depth: usize,
        /// Tokens of each that are timed.
        gen_tokens: usize,
    },
}

impl Figure {
    /// Sequences that it needs.
    pub fn sequences(self) -> usize {
        match self {
            Self::Prefill { .. } => 1,
            Self::Decode { sequences, .. } => sequences,
        }
    }

    /// Tokens of each sequence at the end.
    pub fn length(self) -> usize {
        match self {
            Self::Prefill { prompt } => prompt,
            Self::Decode { depth, gen_tokens, .. } => depth + gen_tokens,
        }
    }

    /// Tokens that are timed.
    pub fn tokens(self) -> usize {
        match self {
            Self::Prefill { prompt } => prompt,
            Self::Decode { sequences, gen_tokens, .. } => sequences * gen_tokens,
        }
    }

    /// The passes that are timed.
    pub fn passes(self) -> impl Iterator<Item = PassShape> {
        let (sequences, start, tokens, step, phase) = match self {
            Self::Prefill { prompt } => (1, 0, prompt, PREFILL_CHUNK, Phase::Prefill),
            Self::Decode { sequences, depth, gen_tokens } => (sequences, depth, gen_tokens, 1, Phase::Decode),
        };
        let end = start + tokens;
        (start..end).step_by(step).map(move |start| {
            let tokens = step.min(end - start);
            PassShape { sequences, start, tokens, phase, logits: step == 1 || start + tokens == end }
        })
    }

    /// The figure that comes closest to this one in a context of `context` tokens; `None` if no token fits.
    pub fn fit(self, context: usize) -> Option<Self> {
        match self {
            Self::Prefill { prompt } => {
                (prompt.min(context) > 0).then(|| Self::Prefill { prompt: prompt.min(context) })
            }
            Self::Decode { sequences, depth, gen_tokens } => {
                let gen_tokens = gen_tokens.min(context);
                let depth = depth.min(context - gen_tokens);
                (sequences > 0 && gen_tokens > 0).then_some(Self::Decode { sequences, depth, gen_tokens })
            }
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefill { prompt } => write!(f, "prefill {prompt}"),
            Self::Decode { sequences: 1, depth, .. } => write!(f, "decode at {depth}"),
            Self::Decode { sequences, depth, .. } => write!(f, "decode {sequences} at {depth}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_cover_the_tokens_and_want_the_logits_that_are_needed() {
        let prefill: Vec<_> = Figure::Prefill { prompt: 1030 }.passes().collect();
        let shapes: Vec<_> = prefill.iter().map(|pass| (pass.start, pass.tokens, pass.logits)).collect();
        assert_eq!(shapes, [(0, 512, false), (512, 512, false), (1024, 6, true)]);
        let decode = Figure::Decode { sequences: 3, depth: 7, gen_tokens: 4 };
        assert_eq!((decode.tokens(), decode.length()), (12, 11));
        let shapes: Vec<_> = decode.passes().map(|pass| (pass.start, pass.tokens, pass.logits)).collect();
        assert_eq!(shapes, [(7, 1, true), (8, 1, true), (9, 1, true), (10, 1, true)]);
    }

    #[test]
    fn a_figure_shrinks_to_the_context() {
        let decode = |depth, gen_tokens| Figure::Decode { sequences: 1, depth, gen_tokens };
        assert_eq!(decode(8000, 64).fit(8192), Some(decode(8000, 64)));
        assert_eq!(decode(8192, 64).fit(8192), Some(decode(8128, 64)));
        assert_eq!(decode(10, 64).fit(32), Some(decode(0, 32)));
        assert_eq!(decode(10, 0).fit(32), None);
        assert_eq!(Figure::Prefill { prompt: 100 }.fit(64), Some(Figure::Prefill { prompt: 64 }));
        assert_eq!(Figure::Prefill { prompt: 0 }.fit(64), None);
    }
}
